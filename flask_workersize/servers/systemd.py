"""Sockets that systemd hands over, and what it is told (sd_listen_fds(3), sd_notify(3))."""

from __future__ import annotations

import os
import socket

_FIRST_FD = 3


def inherited_count() -> int:
    """Return how many listening sockets were handed to this process."""
    try:
        for_us = int(os.environ.get("LISTEN_PID", "0")) == os.getpid()
        return max(0, int(os.environ.get("LISTEN_FDS", "0"))) if for_us else 0
    except ValueError:
        return 0


def take_inherited() -> list[socket.socket]:
    """Return the listening sockets that were handed over; children are not told of them."""
    count = inherited_count()
    if not count:
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return [socket.socket(fileno=_FIRST_FD + number) for number in range(count)]


def notify(state: str) -> None:
    """Tell systemd, if it listens, that the state has changed: "READY=1", "STOPPING=1"."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)
    except OSError:
        # A service manager that does not listen is no reason to fail.
        pass
