"""What the monitor does again and again: each duty when it is due."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from ..resources.processes import peak_resident_memory, process_memory
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot

TURN_SECONDS = 0.25
"""How long the monitor waits for requests before it looks around: how soon it sees the end of the
master."""

SAMPLE_SECONDS = 2.0
"""How often the memory of one worker is read, in turn: one costs up to some milliseconds, so that
this stays below 1 % of a CPU."""


CALM_SECONDS = 0.5
"""A duty that can wait as long has nothing to do: the table is read half as often."""

HURRY_SECONDS = 0.03
"""A duty that wants to look as often as this is acting on what it sees."""


class Task(Protocol):
    """Something to be done again and again."""

    interval: float
    """How long it can wait for its next turn."""

    def run(self, now: float, snapshot: Snapshot) -> None:
        """Do it."""

    def end(self, snapshot: Snapshot) -> None:
        """Do what is left to be done when the master is gone."""


class MonitorLoop:
    """What the monitor has seen over time.

    :param board: the shared table
    :param duties: what else is to be done
    """

    def __init__(self, board: Scoreboard, tasks: Iterable[Task] = ()) -> None:
        self._board = board
        self._tasks = tuple(tasks)
        self._snapshot: Snapshot | None = None
        self._next_look = self._next_read = self._next_sample = 0.0
        self._due = [0.0] * len(self._tasks)

    @property
    def interval(self) -> float:
        """How long to wait for requests before the next look."""
        return min(TURN_SECONDS, self._soonest)

    @property
    def _soonest(self) -> float:
        return min((task.interval for task in self._tasks), default=CALM_SECONDS)

    def run(self) -> None:
        """Look at the table, and do what is due."""
        now = time.monotonic()
        if now < self._next_look:
            # A request has come; it is not yet time.
            return
        self._next_look = now + 0.9 * self.interval
        snapshot = self._read(now)
        for number, task in enumerate(self._tasks):
            if now >= self._due[number]:
                task.run(now, snapshot)
                self._due[number] = now + 0.9 * task.interval
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE_SECONDS
            self._sample(snapshot)

    def _read(self, now: float) -> Snapshot:
        """Return the table; not read anew at every look, unless there is something to be done."""
        is_hurried = self.interval < HURRY_SECONDS
        if self._snapshot is None or is_hurried or now >= self._next_read:
            self._next_read = now + 1.9 * min(max(self._soonest, TURN_SECONDS), CALM_SECONDS)
            self._snapshot = self._board.read()
        return self._snapshot

    def end(self) -> None:
        """Do what is left to be done when the master is gone."""
        snapshot = self._board.read()
        for task in self._tasks:
            task.end(snapshot)

    def _sample(self, snapshot: Snapshot) -> None:
        rows = [row for row in snapshot.workers if row.pid]
        if not rows:
            return
        row = max(rows, key=lambda row: row.memory.age_seconds if row.memory else float("inf"))
        memory = process_memory(row.pid)
        if memory is not None:
            self._board.note_memory(
                row.number,
                memory.rss_bytes,
                memory.pss_bytes,
                memory.uss_bytes,
                peak_resident_memory(row.pid),
            )
