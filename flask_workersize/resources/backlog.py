"""What the kernel knows of sockets: connections that wait for a listener, and peers (Linux).

The kernel answers over netlink what ``ss -l`` shows as Recv-Q (sock_diag(7): ``idiag_rqueue`` and
``udiag_rqueue``, "For listening sockets: the number of pending connections").
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

Listener = tuple[int, int]
"""Address family, and inode."""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_DUMP = 0x301
_ESTABLISHED = 1 << 1
_LISTENING = 1 << 10
_ANY_STATE = 0xFFFFFFFF
_UDIAG_SHOW_PEER = 0x4
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_PEER = 2
_UNIX_DIAG_RQLEN = 4
_HEADER = struct.Struct("=IHHII")
_NO_PORT = 0
_ANY_ADDRESS = bytes(16)


def queued_connections(listeners: Iterable[Listener] | None) -> int | None:
    """Return how many connections wait for these listeners in all; ``None`` if not known."""
    return _total(listeners, is_awaited=False)


def awaited_connections(listeners: Iterable[Listener] | None) -> int | None:
    """Return for how many of them a client still waits; ``None`` if not known.

    The kernel keeps those that their clients have closed or reset in the queue until they are
    accepted. A client that has closed only its half of a connection, to show that it sends no
    more, counts as gone: the two look the same. Of unix sockets all are counted, since the kernel
    reports nothing about one that was not accepted yet.
    """
    return _total(listeners, is_awaited=True)


def _total(listeners: Iterable[Listener] | None, is_awaited: bool) -> int | None:
    if sys.platform != "linux" or listeners is None:
        return None
    wanted = list(listeners)
    lengths: dict[int, int] = {}
    try:
        for family in {family for family, _ in wanted}:
            if family == socket.AF_UNIX:
                lengths.update(_unix_queues())
                continue
            inodes = [inode for wanted_family, inode in wanted if wanted_family == family]
            for queue in _tcp(family, _LISTENING):
                length = queue.length
                if is_awaited and length and queue.inode in inodes:
                    length = min(length, _count_awaited(family, queue))
                lengths[queue.inode] = length
    except (OSError, struct.error):
        return None
    found = [lengths.get(inode) for _, inode in wanted]
    return None if not found or None in found else sum(filter(None, found))


def _count_awaited(family: int, listener: _TcpSocket) -> int:
    """Return how many connections wait for a listener and are established on both sides.

    Those that were not accepted yet have no inode (Linux, net/ipv4/inet_diag.c, ``sock_i_ino``).
    """
    is_everywhere = listener.address == _ANY_ADDRESS
    return sum(
        not item.inode and (is_everywhere or item.address == listener.address)
        for item in _tcp(family, _ESTABLISHED, listener.port)
    )


class _TcpSocket(NamedTuple):
    """A socket; of a listener ``length`` is that of its queue."""

    port: int
    address: bytes
    length: int
    inode: int


def _tcp(family: int, states: int, port: int = _NO_PORT) -> Iterator[_TcpSocket]:
    """Yield the sockets of TCP on a local port, or on all of them (``struct inet_diag_msg``)."""
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, states)
    for body in _ask(request + struct.pack("!H46x", port)):
        (local,) = struct.unpack_from("!H", body, 4)
        length, _, _, inode = struct.unpack_from("=IIII", body, 56)
        yield _TcpSocket(local, body[8:24], length, inode)


def unix_peers() -> dict[int, int]:
    """Return the inode at the other end of each connected unix socket; none if not known."""
    if sys.platform != "linux":
        return {}
    try:
        return dict(_unix(_ANY_STATE, _UDIAG_SHOW_PEER, _UNIX_DIAG_PEER))
    except (OSError, struct.error):
        return {}


def _unix_queues() -> Iterator[tuple[int, int]]:
    return _unix(_LISTENING, _UDIAG_SHOW_RQLEN, _UNIX_DIAG_RQLEN)


def _unix(states: int, show: int, attribute: int) -> Iterator[tuple[int, int]]:
    """Yield inode and one attribute of unix sockets (``struct unix_diag_msg``)."""
    request = struct.pack("=BBHIII8x", socket.AF_UNIX, 0, 0, states, 0, show)
    for body in _ask(request):
        (inode,) = struct.unpack_from("=I", body, 4)
        offset = 16
        while offset + 4 <= len(body):
            length, kind = struct.unpack_from("=HH", body, offset)
            if kind == attribute:
                yield inode, struct.unpack_from("=I", body, offset + 4)[0]
            offset += max((length + 3) & ~3, 4)


def _ask(request: bytes) -> Iterator[bytes]:
    """Yield the bodies of the kernel's answers (netlink(7))."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(0.2)
        length = _HEADER.size + len(request)
        sock.sendto(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _DUMP, 0, 0) + request, (0, 0))
        while True:
            data = sock.recv(65536)
            while data:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError("the kernel does not answer this request")
                yield data[_HEADER.size : length]
                data = data[(length + 3) & ~3 :]
