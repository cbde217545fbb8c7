"""The last events of a deployment, in memory that all its processes share; one process writes."""

from __future__ import annotations

import struct
import time
from typing import NamedTuple

MOST_EVENTS = 32
_HEAD = struct.Struct("QdH")
_TEXT_BYTES = 232
_SIZE = 256


class Event(NamedTuple):
    """What happened, and when, in seconds since 1970."""

    at: float
    text: str


LOG_BYTES = MOST_EVENTS * _SIZE
"""What the ring takes."""


class EventLog:
    """A ring of lines, in :data:`LOG_BYTES` that all processes share."""

    def __init__(self, memory: memoryview[int]) -> None:
        self._map = memory

    def add(self, text: str, at: float | None = None) -> None:
        """Write a line; the oldest makes room for it, and what is too long is cut."""
        data = text.encode("utf-8", "replace")[:_TEXT_BYTES]
        number = max(self._numbers()) + 1
        place = (number % MOST_EVENTS) * _SIZE
        # 0 is no event: who reads meanwhile leaves it out.
        self._map[place : place + 8] = bytes(8)
        start = place + _HEAD.size
        self._map[start : start + len(data)] = data
        _HEAD.pack_into(self._map, place, number, time.time() if at is None else at, len(data))

    def read(self) -> list[Event]:
        """Return the events, the oldest first."""
        found = []
        for place in range(0, MOST_EVENTS * _SIZE, _SIZE):
            entry = bytes(self._map[place : place + _SIZE])
            number, at, length = _HEAD.unpack_from(entry)
            if number:
                text = entry[_HEAD.size : _HEAD.size + length].decode("utf-8", "replace")
                found.append((number, Event(at, text)))
        return [event for _, event in sorted(found)]

    def _numbers(self) -> list[int]:
        places = range(0, MOST_EVENTS * _SIZE, _SIZE)
        return [_HEAD.unpack_from(self._map, place)[0] for place in places]
