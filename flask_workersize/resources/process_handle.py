"""Signal a process only if it is still the intended one: another may have its id by now."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from .processes import start_time


@dataclass(frozen=True)
class ProcessHandle:
    """A process, named for good."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessHandle:
        """Name a process that is there now."""
        return cls(pid, start_time(pid))

    def is_alive(self) -> bool:
        """Return whether the process is there, and no other one in its place."""
        return bool(self.pid and self.start_time) and start_time(self.pid) == self.start_time

    def signal(self, number: int) -> bool:
        """Send a signal, and return whether it was sent: not to another process of that id.

        A pidfd (Linux 5.3, pidfd_open(2)) holds on to the process between the look and the signal.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            # Not on this system, not allowed in this container, or no such process.
            return self.is_alive() and _is_sent(os.kill, self.pid, number)
        try:
            return self.is_alive() and _is_sent(signal.pidfd_send_signal, descriptor, number)
        finally:
            os.close(descriptor)


def _is_sent(send: Callable[[int, int], None], target: int, number: int) -> bool:
    with suppress(OSError):
        send(target, number)
        return True
    return False


def end_all(processes: Iterable[ProcessHandle], patience_seconds: float) -> None:
    """Request processes to end, and kill those that have not after a while."""
    left = [one for one in processes if one.signal(signal.SIGTERM)]
    deadline = time.monotonic() + patience_seconds
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [one for one in left if one.is_alive()]
    for one in left:
        one.signal(signal.SIGKILL)
