"""What to set if the plan is too large: the same advice from every task."""

from __future__ import annotations

from collections.abc import Iterable

from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot, WorkerStats
from ..sizing.plan import SizingPlan

PEAK_SECONDS = 3600.0
"""How long the most that a worker had is remembered: an outlier is not the rule."""

KEPT_SECONDS = 60.0
"""How long an answer that was logged is kept, unless the kernel contradicts it: two numbers in a
minute would confuse."""


class Remedy:
    """Remembers the peak memory of workers, and the last advice.

    ``plan`` is that of the start; the scoreboard has what the limits have made of it since.
    ``share`` is the share of the limit above which workers are recycled.
    """

    def __init__(self, board: Scoreboard, plan: SizingPlan, share: float) -> None:
        self._board = board
        self.plan = plan
        self.is_alone = plan.server == "waitress"
        self.peak_bytes = self.needed_bytes = 0
        self._share = share
        self._peak_at = self._needed_at = self._said_at = float("-inf")
        self._said = ""
        self._killed_bytes = 0
        self._most = self._most_of = self.planned

    @property
    def planned(self) -> int:
        """Workers that are planned for the limits of now."""
        return self._board.fitting

    def note(self, now: float, workers: Iterable[WorkerStats]) -> None:
        """Remember the most private memory that one has, and the most that one needs."""
        rows = [row for row in workers if row.memory]
        needed = max((row.needed_bytes for row in rows), default=0)
        largest = max((row.private_bytes for row in rows), default=0)
        largest = max(largest, needed)
        if largest >= self.peak_bytes or now > self._peak_at + PEAK_SECONDS:
            self.peak_bytes, self._peak_at = largest, now
        if needed >= self.needed_bytes or now > self._needed_at + PEAK_SECONDS:
            self.needed_bytes, self._needed_at = needed, now

    def note_kill(self, wanted: int, least_bytes: int = 0) -> None:
        """Remember that so many workers, of which one had at least so much, were one too many."""
        self._follow()
        self._killed_bytes = max(self._killed_bytes, least_bytes)
        if self._most > max(wanted - 1, 1):
            self._most, self._said_at = max(wanted - 1, 1), float("-inf")

    def advise(self, now: float, limit_bytes: int, others_bytes: int) -> str:
        """Return what to set; ``others_bytes`` is what is used and private to no worker."""
        self._follow()
        if self.planned == 1:
            return "Give it more memory: it runs one worker already."
        if now >= self._said_at + KEPT_SECONDS:
            # As many as fit when each is as large as the largest was.
            room = self._share * limit_bytes - others_bytes
            each = max(self.peak_bytes, self._killed_bytes, 1)
            workers = max(1, min(int(room // each), self._most))
            self._board.workers_advised = workers
            available_mb = self._board.available_mb or self.plan.memory_available_mb
            memory_mb = max(available_mb // workers, 1)
            self._said = f"Set NOW_LMS_WORKERS={workers} or NOW_LMS_WORKER_MEMORY_MB={memory_mb}."
        self._said_at = now
        return self._said

    def _follow(self) -> None:
        """Forget what was too many, and what was advised, once another number is planned."""
        if self.planned != self._most_of:
            self._most = self._most_of = self.planned
            self._board.workers_advised = 0
            self._said_at = float("-inf")


def others_bytes(snapshot: Snapshot) -> int:
    """Return what is used and private to no worker: launcher, monitor, what all share."""
    private = sum(worker.private_bytes for worker in snapshot.workers)
    return max(snapshot.stored["memory_used_bytes"] - private, 0)
