"""Keeps the last hour: a sample of the counters every few seconds."""

from __future__ import annotations

from ..runtime.history import SAMPLE_SECONDS, Sample
from ..runtime.layout import NANOSECONDS
from ..runtime.scoreboard import Scoreboard
from .loop import Look, Task


class HistoryTask(Task):
    """Enters in the shared history what all have counted until now.

    It remembers nothing itself: one that is started again goes on.
    """

    interval = float(SAMPLE_SECONDS)

    def __init__(self, board: Scoreboard) -> None:
        self._board = board

    def run(self, now: float, look: Look) -> None:
        """Take a sample."""
        queue = self._board.queue_times
        snapshot = look()
        sample = Sample.of(snapshot, queue.totals(), round(now * NANOSECONDS))
        most_ns = queue.most_ns(int(now // SAMPLE_SECONDS) - 1)
        self._board.last_hour.note(sample._replace(queue_most_ns=most_ns), snapshot.slots)
