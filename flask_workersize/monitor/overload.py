"""Records how long requests wait, and logs a line if they wait too long."""

from __future__ import annotations

import logging

from ..runtime.queue_times import PERIOD_SECONDS, LastMinute
from ..runtime.scoreboard import Scoreboard
from .loop import Look, Task

SAY_SECONDS = 60.0

LONG_SECONDS = 2.0
"""A wait that users notice, and that needs action."""


_PROXIED = " (Times include X-Request-Start: if none wait, the clocks of proxy and server differ.)"


class OverloadTask(Task):
    """Keeps the waits of the last minute, and logs a line a minute while requests wait too long.

    ``bound_seconds`` is how long a request may have waited, ``None`` for any time; ``is_proxied``
    whether a proxy's time stamps are believed.
    """

    interval = float(PERIOD_SECONDS)

    def __init__(
        self, board: Scoreboard, bound_seconds: float | None, is_proxied: bool = False
    ) -> None:
        self._board = board
        self._times = board.queue_times
        self._bound = bound_seconds
        self._note = _PROXIED if is_proxied else ""
        self._last_minute = LastMinute(self._times)
        self._shed_before = self._times.totals().shed
        self._said_at = float("-inf")

    def run(self, now: float, look: Look) -> None:
        """Look at the last period."""
        waits = self._last_minute.look(now)
        self._board.note_queue(waits)
        if waits is None or now < self._said_at + SAY_SECONDS:
            return
        most = waits[1] / 1e9
        if line := self._line(most):
            self._said_at = now
            self._board.events.tell(logging.WARNING, line)

    def _line(self, most: float) -> str | None:
        if self._bound is None:
            if most <= LONG_SECONDS:
                return None
            return (
                f"requests wait up to {most:.1f} s for a free worker. Add threads, workers or CPUs "
                "(flask workersize measure shows which), or turn away requests that waited "
                "longer with NOW_LMS_QUEUE_SECONDS=0.5."
                f"{self._note}"
            )
        shed = self._times.totals().shed
        count, self._shed_before = shed - self._shed_before, shed
        if not count:
            return None
        requests = "1 request" if count == 1 else f"{count} requests"
        return (
            f"{requests} turned away with status 503: waited up to {most:.1f} s, "
            f"NOW_LMS_QUEUE_SECONDS allows {self._bound:g} s. Add threads, workers, CPUs or "
            "another server."
        )
