"""A worker's first request, which may take much memory: only as many at once as surely fit.

If each worker loads something with its first request, all of them together may need more than there
is, and take it before the guard could act. So a worker that has served nothing leaves connections
to others until there is room: for the memory that the plan assumes for a worker or, if that is
more, for the most that a worker has taken so far. One alone begins if there is room for the latter.
Meanwhile the monitor removes the excess workers.

No worker waits for longer than :data:`PATIENCE_SECONDS`, however long a first request takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ..resources.gauge import MemoryState
from ..resources.processes import ResidentPeak, peak_resident_memory
from ..runtime.scoreboard import Scoreboard
from ..runtime.worker_record import WorkerRecord
from .observation import critical_share

PATIENCE_SECONDS = 1.0
"""How long a worker leaves connections to others at most, before its own first request; and how
long a first request is waited for."""

FORGET_SECONDS = 0.5
"""A worker that has not refused a connection for so long starts a new wait."""


def may_begin(free_bytes: float, beginning: int, most_bytes: float, planned_bytes: float) -> bool:
    """Return whether a worker may serve its first request now.

    :param free_bytes: what is left of the limit on memory
    :param beginning: other workers whose first request has just begun
    :param most_bytes: the most that a worker is known to have taken since it was ready; 0 if that
        is not known
    :param planned_bytes: memory that the plan assumes for a worker
    """
    needed = max(planned_bytes, most_bytes)
    return (beginning + 1) * needed <= free_bytes or (not beginning and most_bytes <= free_bytes)


def taken_between(before: ResidentPeak, after: ResidentPeak) -> int:
    """Return the most that a process has taken in between, in bytes, without pages of files."""
    has_new_peak = after.most_bytes > before.most_bytes
    most = after.most_bytes if has_new_peak else after.rss_bytes
    return max(most - after.file_bytes - (before.rss_bytes - before.file_bytes), 0)


class FirstRequest:
    """A worker's way to its first request.

    :param board: the shared table
    :param row: the worker's own row of it
    :param planned_bytes: memory that the plan assumes for a worker
    :param read: returns how near memory is to its limit
    :param clock: returns seconds of a monotonic clock
    """

    def __init__(
        self,
        board: Scoreboard,
        row: WorkerRecord,
        planned_bytes: int,
        read: Callable[[], MemoryState],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self._row = row
        self._planned_bytes = planned_bytes
        self._read = read
        self._clock = clock
        self._refused_since = self._refused_at = float("-inf")
        self._began_at: float | None = None
        self._before = ResidentPeak()

    def begins(self) -> bool:
        """Return whether to accept a connection now; from then on that is the first request."""
        now = self._clock()
        if self._began_at is not None:
            # A worker of several threads serves one to begin with, unless more of them fit.
            return now >= self._began_at + PATIENCE_SECONDS or self._fits(beginning=1)
        if now >= self._refused_at + FORGET_SECONDS:
            self._refused_since = now
        # Noted before checking the others: of two at the same time the second sees the first.
        self._row.begin_first()
        if now < self._refused_since + PATIENCE_SECONDS and not self._fits():
            self._row.end_first()
            self._refused_at = now
            return False
        self._began_at, self._before = now, peak_resident_memory(os.getpid())
        return True

    def _fits(self, beginning: int = 0) -> bool:
        """Return whether there is room for a first request, besides ``beginning`` of this worker.

        Without a limit below the machine's there always is.
        """
        state = self._read()
        free = critical_share(state) * state.limit_bytes - state.used_bytes
        others, most_bytes = self._board.first_requests(self._row, PATIENCE_SECONDS)
        fits = may_begin(free, beginning + others, most_bytes, self._planned_bytes)
        return fits or not state.is_group

    def is_over(self, holds_any: bool) -> bool:
        """Return whether the first request was served.

        :param holds_any: whether a connection is open; one may close without a request
        """
        is_over = self._row.has_served
        if self._began_at is not None and (is_over or not holds_any):
            taken = taken_between(self._before, peak_resident_memory(os.getpid()))
            self._row.end_first(taken if is_over else 0)
            self._began_at = None
        return is_over
