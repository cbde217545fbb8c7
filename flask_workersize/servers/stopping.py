"""What both servers need to stop without losing a request.

A connection is the server's as soon as the kernel has accepted it for the listener, long before a
worker does. So a stop first blocks new connections, then serves all that are queued, and only then
closes the listener. A client that is turned away has not lost a request; it retries and reaches
the next server.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

from ..resources.backlog import Listener, queued_connections
from ..runtime.polling import wait_readable

SETTLE_SECONDS = 0.2
"""How long a stop waits for handshakes under way: longer than the round trip to most clients."""

SILENCE_SECONDS = 1.0
"""How long a connection that sends nothing may hold a stop."""

LATE_SILENCE_SECONDS = 4.0
"""The same for one that was established after the least TTL had been set: what it sent was dropped
until a worker accepted it, and its system sends that again after 0.2 to 3 seconds."""

_SO_ATTACH_FILTER = _SO_GET_FILTER = 26
_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73
_MAX_TTL = 255
_UNKNOWN_QUEUE = 128
"""How many connections to drain if the system does not report how many are queued."""

# Classic BPF over the TCP header: drop what has SYN set, keep the rest, above all the last packet
# of a handshake under way (Linux, Documentation/networking/filter.rst).
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x45, 0, 1, 0x02),  # is SYN set?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # keep
)


def block_new_connections(listeners: Iterable[socket.socket]) -> bool:
    """Block new connections, and return whether none can enter any of the queues from now on."""
    blocked = [_block(listener) for listener in listeners]
    return all(blocked)


def _block(listener: socket.socket) -> bool:
    """Block one listener; the file of a unix socket was removed before, which is enough."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    return sys.platform == "linux" and (_attach_filter(listener) or _require_max_ttl(listener))


def _attach_filter(listener: socket.socket) -> bool:
    """Drop the first packet of each new connection; needs CAP_NET_ADMIN."""
    program = b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN)
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(buffer))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
        # A sandbox such as gVisor accepts options that it does not know, and does nothing.
        steps = listener.getsockopt(socket.SOL_SOCKET, _SO_GET_FILTER, 8 * len(_DROP_SYN))
    except OSError:
        return False
    return steps == program


def _require_max_ttl(listener: socket.socket) -> bool:
    """Drop each packet that may have passed a router (``IP_MINTTL``, ip(7)); needs no privilege.

    Systems send packets with a TTL of 64 or 128, so in practice it drops all of them, also those of
    this machine. Only a client on the same link that sends the full 255 still gets in.
    """
    try:
        _set_least_ttl(listener, _MAX_TTL)
        return _least_ttl(listener) == _MAX_TTL
    except OSError:
        return False


def _set_least_ttl(sock: socket.socket, ttl: int) -> None:
    # A socket of IPv6 that takes IPv4 too needs both.
    sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, ttl)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, ttl)


def _least_ttl(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_IP, _IP_MINTTL)


def admit(connection: socket.socket) -> float:
    """Let in what a new connection sends, and return how long it may be silent during a stop.

    A handshake that was under way when the listener was blocked has inherited its least TTL.
    """
    if sys.platform != "linux" or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return SILENCE_SECONDS
    try:
        if _least_ttl(connection) != _MAX_TTL:
            return SILENCE_SECONDS
        _set_least_ttl(connection, 0)
    except OSError:
        # This system does not know the option, so it was not set.
        return SILENCE_SECONDS
    return LATE_SILENCE_SECONDS


def connections_to_accept(
    listeners: Iterable[socket.socket], known: Iterable[Listener] | None
) -> float:
    """Block new connections, and return how many queued ones a process may still accept.

    Without a limit if the queues cannot grow any more; else as many as wait now, since under load
    a queue never becomes empty.
    """
    queued = queued_connections(known)
    if block_new_connections(listeners):
        return math.inf
    return _UNKNOWN_QUEUE if queued is None else queued


class AcceptBudget:
    """How much of a queue one process serves before it stops.

    A queue that can grow is served for half of the graceful timeout at most: the other half is for
    the answers.
    """

    def __init__(self, connections: float, graceful_timeout: float) -> None:
        self._connections = connections
        is_bounded = connections < math.inf
        self._until = time.monotonic() + graceful_timeout / 2 if is_bounded else math.inf

    def allows(self, accepted: int) -> bool:
        """Return whether one more connection may be accepted after so many."""
        return accepted < self._connections and time.monotonic() < self._until


class StopSignal:
    """Announces the stop of the server to all processes forked after it was made.

    It becomes readable once and stays so: a thread can wait for it while the main thread is busy.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._connections = memoryview(mmap.mmap(-1, 8)).cast("d")

    def send(self, connections: float) -> None:
        """Announce the stop, and how many queued connections each process may accept."""
        self._connections[0] = connections
        os.write(self._write, b"!")

    def is_sent(self) -> bool:
        """Return whether the server stops."""
        return self.wait(0)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the server stops, and return whether it does."""
        return bool(wait_readable([self._read], seconds))

    def budget(self, graceful_timeout: float) -> AcceptBudget:
        """Return what this process may accept from now on."""
        return AcceptBudget(self._connections[0], graceful_timeout)


class WatchedSocket(socket.socket):
    """A connection that measures how long the server has waited for its client.

    Not how long the client has been silent: while the app computes, a client may have nothing to
    send, or no way to send it.
    """

    def __init__(self, sock: socket.socket) -> None:
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self.settimeout(timeout)
        self._waiting_since: float | None = time.monotonic()

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive, and note that the client is waited for."""
        self._waiting_since = time.monotonic()
        try:
            return super().recv(bufsize, flags)
        finally:
            self._waiting_since = None

    @property
    def is_awaited(self) -> bool:
        """Whether something of its client is waited for."""
        return self._waiting_since is not None

    def waited_seconds(self) -> float:
        """Return how long :meth:`recv`, or the first byte, has been waited for."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since


_LAST_DATA = struct.Struct("52xI")
"""``tcpi_last_data_recv`` of ``struct tcp_info`` (Linux, include/uapi/linux/tcp.h), in
milliseconds."""

_TCP, _TCP_INFO, _INFO_SIZE = socket.IPPROTO_TCP, getattr(socket, "TCP_INFO", 0), _LAST_DATA.size


def since_last_data(connection: socket.socket) -> float | None:
    """Return how many seconds ago a TCP connection last brought data; ``None`` if not known."""
    if sys.platform != "linux":
        return None
    try:
        info = connection.getsockopt(_TCP, _TCP_INFO, _INFO_SIZE)
    except OSError:
        # A unix socket, or one that is closed.
        return None
    return float(_LAST_DATA.unpack(info)[0]) / 1000


def silent_seconds(connection: socket.socket) -> float:
    """Return for how long a connection has kept the server waiting, as well as can be measured.

    With TLS, which reads past :class:`WatchedSocket`, it is the time since its last packet, or
    since the handshake of TCP (``tcpi_last_data_recv``, Linux, include/uapi/linux/tcp.h).
    """
    if isinstance(connection, WatchedSocket):
        return connection.waited_seconds()
    since = since_last_data(connection)
    return math.inf if since is None else since


def hang_up_if_silent(connection: socket.socket, patience: float) -> None:
    """Stop waiting for what a silent client might still send; what is being sent to it goes on.

    :param patience: what :func:`admit` has returned for it, in seconds
    """
    # It may be closed by now, which is as good.
    with suppress(OSError):
        if silent_seconds(connection) >= patience:
            connection.shutdown(socket.SHUT_RD)
