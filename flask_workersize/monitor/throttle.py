"""Logs that the kernel slows the server down, which nothing else would show."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..resources.cgroups import Throttling
from ..runtime.events import EventLog
from ..sizing.plan import MB
from .loop import Look, Task

INTERVAL_SECONDS = 2.0

LEAST_PRESSURE = 10.0
"""Percent of the time that processes waited for memory; less goes unnoticed."""

SAY_SECONDS = 60.0


class ThrottleDetector(Task):
    """Compares how often ``memory.high`` was exceeded, and how long processes waited because of it.

    ``read`` returns both; ``None`` if no such limit is near.
    """

    interval = INTERVAL_SECONDS

    def __init__(self, events: EventLog, read: Callable[[], Throttling | None]) -> None:
        self._events = events
        self._read = read
        self._before = read()
        self._said_at = float("-inf")

    def run(self, now: float, look: Look) -> None:
        """Log it, but not too often."""
        before, self._before = self._before, self._read()
        found = self._before
        # A limit that was set since then may have been exceeded at once, by the one burst there is.
        times = found.times - (before.times if before else 0) if found else 0
        if found is None or times <= 0:
            return
        if found.pressure_percent < LEAST_PRESSURE or now < self._said_at + SAY_SECONDS:
            return
        self._said_at = now
        self._events.tell(
            logging.WARNING,
            f"memory: throttled by the kernel. memory.high ({found.high_bytes // MB} MB) exceeded "
            f"{times} times; processes waited {found.pressure_percent:.0f} % "
            "of the last 10 s for memory. Raise memory.high, or use memory.max (MemoryMax=) alone.",
        )
