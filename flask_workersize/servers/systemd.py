"""Sockets that systemd passes on, and state sent to it (sd_listen_fds(3), sd_notify(3))."""

from __future__ import annotations

import math
import os
import socket
import time
from contextlib import suppress

from ..health.probe import ProbeRules
from ..runtime.scoreboard import Scoreboard

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
    """Report a state to systemd, if it listens: "READY=1", "STOPPING=1", "WATCHDOG=1"."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A service manager that does not listen must not stop the server.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)


def notify_reloading() -> None:
    """Report that a reload begins; "READY=1" reports its end."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_seconds() -> float | None:
    """Return within how many seconds ``WatchdogSec=`` wants each heartbeat of this process.

    ``None`` if it wants none (sd_watchdog_enabled(3)).
    """
    period, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    is_ours = pid in ("", str(os.getpid()))
    return int(period) / 1e6 if is_ours and period.isdecimal() and int(period) else None


class Watchdog:
    """Heartbeats for ``WatchdogSec=``: the server's loop runs, and ``/live`` would pass."""

    def __init__(self, board: Scoreboard, timeout_seconds: float) -> None:
        self._board = board
        self._rules = ProbeRules(timeout_seconds)
        period = watchdog_seconds()
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            # A program that the app starts must not take it for its own.
            os.environ.pop(name, None)
        self._interval = math.inf if period is None else period / 2
        self._due_at = math.inf if period is None else -math.inf
        self.turn_seconds = min(1.0, self._interval / 2)
        """How long the server's loop may wait, to be in time."""

    def beat(self) -> None:
        """Send a heartbeat if one is due; call it in each turn of the loop."""
        now = time.monotonic()
        if now >= self._due_at and self._rules.not_live(self._board.read()) is None:
            notify("WATCHDOG=1")
            self._due_at = now + self._interval
