"""Sockets that systemd passes on, and state sent to it (sd_listen_fds(3), sd_notify(3))."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_FIRST_FD = 3


def inherited_count() -> int:
    """Return how many listening sockets were passed to this process."""
    count = os.environ.get("LISTEN_FDS", "")
    is_ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return int(count) if is_ours and count.isdecimal() else 0


def take_inherited() -> list[socket.socket]:
    """Return the listening sockets that were passed on, and hide them from children."""
    count = inherited_count()
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return [socket.socket(fileno=_FIRST_FD + number) for number in range(count)]


def notify(state: str) -> None:
    """Report a state to systemd, if it listens: "READY=1", "STOPPING=1"."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A service manager that does not listen is no reason to fail.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
