"""The monitor's loop: runs each task when it is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache

from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot

Look = Callable[[], Snapshot]
"""Returns the table: it is read once a pass, by the first task that wants it."""


class Task:
    """Repeated work; the loop keeps its clock."""

    interval: float
    """Seconds until its next turn; it may change with each."""

    def run(self, now: float, look: Look) -> None:
        """Do it."""

    def end(self, snapshot: Snapshot) -> None:
        """Finish when the master is gone; most tasks do nothing."""


class MonitorLoop:
    """Runs each task when it is due."""

    def __init__(
        self,
        board: Scoreboard,
        tasks: Iterable[Task] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self._next = {task: float("-inf") for task in tasks}
        self._clock = clock

    def run(self) -> float:
        """Run what is due, and return the seconds until something is due again."""
        now = self._clock()
        due = [task for task, at in self._next.items() if at <= now]
        look = cache(self._board.read)
        for task in due:
            task.run(now, look)
            # On a grid, so that tasks are due together and share what was read.
            self._next[task] = (now // task.interval + 1) * task.interval
        return max(min(self._next.values(), default=float("inf")) - self._clock(), 0.0)

    def end(self) -> None:
        """Let each task finish when the master is gone."""
        snapshot = self._board.read()
        for task in self._next:
            task.end(snapshot)
