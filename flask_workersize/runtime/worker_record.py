"""A worker's own row of the scoreboard, for it to write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ..resources.processes import start_time
from .layout import Cell, Header, Slot
from .queue_times import QueueRow

Others = Callable[[int], tuple[int | None, bool]]
"""Returns, for a worker's age, what that other worker holds that holds least, ``None`` if there is
no other; and whether one of those that hold so little has a thread that runs no request."""


class WorkerRecord:
    """A worker's own row, for it to write."""

    def __init__(
        self, cells: memoryview[int], start: int, slots: int, others: Others, queue: QueueRow
    ) -> None:
        self.cells = cells
        self.queue = queue
        """Its part of the table of queue times."""
        self._start = start
        self._others = others
        first = start + Cell.WORDS
        self.slots = range(first, first + slots * Slot.WORDS, Slot.WORDS)
        """Where each of its slots begins."""

    @property
    def threads(self) -> int:
        """Requests that may run at once in this worker, now."""
        return self.cells[Header.THREADS]

    def enter(self) -> None:
        """Record this worker's process."""
        self.cells[self._start + Cell.START_TIME] = start_time(os.getpid())
        self.cells[self._start + Cell.PID] = os.getpid()

    def set_ready(self) -> None:
        """Record that the app is loaded and requests are taken."""
        self.beat()
        self.cells[self._start + Cell.READY] = 1

    @property
    def is_ready(self) -> bool:
        """Whether this worker has loaded the app and taken requests."""
        return bool(self.cells[self._start + Cell.READY])

    def beat(self) -> None:
        """Record a heartbeat of this worker's main loop."""
        self.cells[self._start + Cell.HEARTBEAT] = time.monotonic_ns()

    def running(self) -> int:
        """Return how many requests run in this worker."""
        return sum(self.cells[slot] != 0 for slot in self.slots)

    def note_held(self, count: int, expected: int = 0) -> None:
        """Record how many connections occupy this worker, or wait in it for a thread.

        :param expected: how many others it has just accepted, whose requests come in a moment
        """
        self.cells[self._start + Cell.HELD] = count
        self.cells[self._start + Cell.CLAIMED] = count + expected

    def take_no_more(self, held: int = 0) -> None:
        """Record that this worker accepts nothing, however little it holds."""
        self.cells[self._start + Cell.HELD] = held
        self.cells[self._start + Cell.CLAIMED] = -1

    def others(self) -> tuple[int | None, bool]:
        """Return what the other workers hold that take requests, see :data:`Others`."""
        return self._others(self.cells[self._start])

    @property
    def has_served(self) -> bool:
        """Whether a request was served."""
        return any(self.cells[slot + Slot.SERVED] for slot in self.slots)

    @property
    def first_since(self) -> int:
        """When the first request began, in nanoseconds of the monotonic clock; 0 if none runs."""
        return self.cells[self._start + Cell.FIRST_SINCE]

    def begin_first(self) -> None:
        """Record that the first request begins."""
        self.cells[self._start + Cell.FIRST_SINCE] = time.monotonic_ns()

    def end_first(self, took_bytes: int = 0) -> None:
        """Record that the first request has ended, and its peak memory."""
        self.cells[self._start + Cell.FIRST_TOOK] = took_bytes
        self.cells[self._start + Cell.FIRST_SINCE] = 0

    @property
    def is_told_to_leave(self) -> bool:
        """Whether this worker is being recycled."""
        return bool(self.cells[self._start + Cell.TOLD])

    def leave(self) -> None:
        """Record that this worker ends by itself; a worker that does not was killed."""
        self.cells[self._start + Cell.LEFT] = 1
