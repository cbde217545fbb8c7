"""What both servers need to stop without losing a request.

A connection is the server's as soon as the kernel has accepted it for the listener, long before a
worker does. So a stop first keeps new connections away, then serves all that are queued, and only
then closes the listener: whoever is turned away has not been promised anything, and comes back to
the next server.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
import struct
import sys
from collections.abc import Iterable

SETTLE_SECONDS = 0.2
"""How long a stop waits for handshakes under way: longer than the round trip to most clients."""

SILENCE_SECONDS = 1.0
"""How long a connection that sends nothing may hold a stop."""

_SO_ATTACH_FILTER = 26
_EVERYTHING = 2**31 - 1
_UNKNOWN_QUEUE = 128
"""What is drained where the system does not tell how much is queued."""

# Classic BPF over the TCP header: drop what has SYN set, keep the rest, above all the last packet
# of a handshake under way (Linux, Documentation/networking/filter.rst).
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x45, 0, 1, 0x02),  # is SYN set?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # keep
)


class StopSignal:
    """Tells all processes forked after it was made that the server stops, and not only a worker.

    It becomes readable once and stays so: a thread can wait for it while the main thread is busy.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._queued = mmap.mmap(-1, 4)

    def send(self, queued: int) -> None:
        """Say that the server stops, and how many queued connections are to be served.

        :param queued: as :func:`keep_away_new` returns it
        """
        self._queued[:4] = struct.pack("=i", queued)
        os.write(self._write, b"!")

    def is_sent(self) -> bool:
        """Return whether the server stops."""
        return bool(select.select([self._read], [], [], 0)[0])

    def wait(self) -> None:
        """Return when the server stops."""
        select.select([self._read], [], [])

    def queued(self) -> int:
        """Return how many queued connections are to be served, at most."""
        number: int = struct.unpack("=i", self._queued[:4])[0]
        return number


def keep_away_new(listeners: Iterable[socket.socket]) -> int:
    """Let no new connection into the queues of listeners, where that can be done.

    :param listeners: listening sockets; those on a path are expected to be unlinked
    :returns: how many queued connections are to be served: all where the queue cannot grow any
        more, else what is queued now
    """
    return min(_EVERYTHING, sum(_keep_away(listener) for listener in listeners))


def _keep_away(listener: socket.socket) -> int:
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return _EVERYTHING
    if sys.platform != "linux":
        return _UNKNOWN_QUEUE
    program = b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN)
    buffer = ctypes.create_string_buffer(program)
    try:
        header = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(buffer))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
    except OSError:
        return queue_length(listener)
    return _EVERYTHING


def queue_length(listener: socket.socket) -> int:
    """Return how many connections wait in the queue of a TCP listener (Linux)."""
    return _tcp_info(listener, 24)


def silent_seconds(connection: socket.socket) -> float:
    """Return for how long a connection has sent nothing; for ever where that cannot be told."""
    if sys.platform != "linux" or connection.family == socket.AF_UNIX:
        return float("inf")
    return _tcp_info(connection, 52) / 1000


def _tcp_info(sock: socket.socket, offset: int) -> int:
    """Return one field of ``struct tcp_info`` (Linux, include/uapi/linux/tcp.h)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    number: int = struct.unpack_from("I", info, offset)[0]
    return number


def hang_up_if_silent(connection: socket.socket) -> None:
    """Stop waiting for what a silent client might still send; what is being sent to it goes on."""
    try:
        if silent_seconds(connection) >= SILENCE_SECONDS:
            connection.shutdown(socket.SHUT_RD)
    except OSError:
        # It was closed meanwhile, which is as good.
        pass
