"""The last events of a deployment, in memory that all its processes share.

There are two rings, so that no lock is needed: one for the monitor, and one for the process that
made the memory, which is the master. No other process writes. Readers merge them.

Anyone who reaches the health port can read events: they name no process, no path and no value that
is not ours.
"""

from __future__ import annotations

import os
import struct
import time
from typing import NamedTuple

from ..errors import printable
from ..log import say

MOST_EVENTS = 32
_HEAD = struct.Struct("QdH")
_TEXT_BYTES = 232
_SIZE = 256
_RING_BYTES = MOST_EVENTS * _SIZE


class Event(NamedTuple):
    """What happened, and when, in seconds since 1970."""

    at: float
    text: str


LOG_BYTES = 2 * _RING_BYTES
"""What both rings take."""


class EventLog:
    """The last lines, in :data:`LOG_BYTES` that all processes share. Make it in the master."""

    def __init__(self, memory: memoryview[int]) -> None:
        self._rings = memory[:_RING_BYTES], memory[_RING_BYTES:]
        self._master = os.getpid()

    def tell(self, level: int, line: str, event: str | None = None) -> None:
        """Log a line, and keep it as an event, without its full stop.

        :param event: what to keep instead, if the line names something that not everyone may read
        """
        self.add((line if event is None else event).removesuffix("."))
        say(level, line)

    def add(self, text: str, at: float | None = None) -> None:
        """Keep a line; the oldest makes room for it, and what is too long is cut."""
        ring = self._rings[os.getpid() == self._master]
        data = _cut(printable(text).encode("utf-8", "replace"))
        number = max(_numbers(ring)) + 1
        place = (number % MOST_EVENTS) * _SIZE
        # 0 is no event: a reader skips it.
        ring[place : place + 8] = bytes(8)
        start = place + _HEAD.size
        ring[start : start + len(data)] = data
        _HEAD.pack_into(ring, place, number, time.time() if at is None else at, len(data))

    def read(self) -> list[Event]:
        """Return the last events, the oldest first."""
        found = [event for ring in self._rings for event in _read(ring)]
        return sorted(found, key=lambda event: event.at)[-MOST_EVENTS:]


def _cut(data: bytes) -> bytes:
    """Return the sentences that there is room for, or the characters if that is none."""
    if len(data) <= _TEXT_BYTES:
        return data
    sentences, dot, _ = data[: _TEXT_BYTES + 1].rpartition(b". ")
    if dot:
        return sentences
    return data[: _TEXT_BYTES - 3].decode("utf-8", "ignore").encode() + "…".encode()


def _read(ring: memoryview[int]) -> list[Event]:
    found = []
    for place in range(0, _RING_BYTES, _SIZE):
        entry = bytes(ring[place : place + _SIZE])
        number, at, length = _HEAD.unpack_from(entry)
        if number:
            text = entry[_HEAD.size : _HEAD.size + length].decode("utf-8", "replace")
            found.append((number, Event(at, text)))
    return [event for _, event in sorted(found)]


def _numbers(ring: memoryview[int]) -> list[int]:
    return [_HEAD.unpack_from(ring, place)[0] for place in range(0, _RING_BYTES, _SIZE)]
