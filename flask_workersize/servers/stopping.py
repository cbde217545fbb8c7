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
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable

SETTLE_SECONDS = 0.2
"""How long a stop waits for handshakes under way: longer than the round trip to most clients."""

SILENCE_SECONDS = 1.0
"""How long a connection that sends nothing may hold a stop."""

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT} | (
    {signal.SIGQUIT} if hasattr(signal, "SIGQUIT") else set()
)
"""Signals that end a worker."""

UNLIMITED = 2**31 - 1
"""More connections than any queue holds."""

_SO_ATTACH_FILTER = 26
_MOST_PERMITS = 4096
"""What a pipe takes on every system, twice the default backlog."""
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
    Workers share the queue, so they share the permits to accept from it too: one byte each in a
    pipe.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._permits, self._more_permits = os.pipe()
        os.set_blocking(self._permits, False)
        self._unlimited = mmap.mmap(-1, 1)

    def send(self, queued: int) -> None:
        """Say that the server stops, and how many queued connections are to be served.

        :param queued: as :func:`block_new_connections` returns it
        """
        self._unlimited[0] = queued >= UNLIMITED
        if queued < UNLIMITED:
            os.write(self._more_permits, b"." * min(queued, _MOST_PERMITS))
        os.write(self._write, b"!")

    def is_sent(self) -> bool:
        """Return whether the server stops."""
        return self.wait(0)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the server stops, and return whether it does."""
        return bool(select.select([self._read], [], [], seconds)[0])

    def take_permit(self) -> bool:
        """Return whether one more queued connection may be accepted."""
        if self._unlimited[0]:
            return True
        try:
            return bool(os.read(self._permits, 1))
        except BlockingIOError:
            return False

    def return_permit(self) -> None:
        """Leave to others what was not there to accept."""
        if not self._unlimited[0]:
            os.write(self._more_permits, b".")


def block_new_connections(listeners: Iterable[socket.socket]) -> int:
    """Let no new connection into the queues of listeners, where that can be done.

    :param listeners: listening sockets; those on a path are expected to be unlinked
    :returns: how many queued connections are to be served: all where the queue cannot grow any
        more, else what is queued now
    """
    return min(UNLIMITED, sum(_keep_away(listener) for listener in listeners))


def _keep_away(listener: socket.socket) -> int:
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return UNLIMITED
    if sys.platform != "linux":
        return _UNKNOWN_QUEUE
    program = b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN)
    buffer = ctypes.create_string_buffer(program)
    try:
        header = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(buffer))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
    except OSError:
        return queue_length(listener)
    return UNLIMITED


def queue_length(listener: socket.socket) -> int:
    """Return how many connections wait in the queue of a TCP listener (Linux)."""
    return _tcp_info(listener, 24)


class WatchedSocket(socket.socket):
    """A connection that knows for how long its client has been waited for.

    Not how long the client has been silent: while the app thinks, a client may have nothing to
    say, or no way to say it.
    """

    def __init__(self, sock: socket.socket) -> None:
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self.settimeout(timeout)
        self._waiting_since: float | None = time.monotonic()
        self.is_answered = False

    def shutdown(self, how: int, /) -> None:
        """Shut down; after the last byte was sent, only the client's goodbye is waited for."""
        self.is_answered = self.is_answered or how == socket.SHUT_WR
        super().shutdown(how)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive, and note that the client is waited for."""
        self._waiting_since = time.monotonic()
        try:
            return super().recv(bufsize, flags)
        finally:
            self._waiting_since = None

    def waited_seconds(self) -> float:
        """Return for how long somebody has been waiting in :meth:`recv`, or for the first byte."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since


def silent_seconds(connection: socket.socket) -> float:
    """Return for how long a connection has kept the server waiting, as well as can be told.

    Once it was answered, and with TLS, which reads past :class:`WatchedSocket`, it is the time
    since its last packet.
    """
    if isinstance(connection, WatchedSocket) and not connection.is_answered:
        return connection.waited_seconds()
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
