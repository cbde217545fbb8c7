"""A worker's own row of the scoreboard, for it to write."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ..resources.processes import start_time
from .layout import NANOSECONDS, Cell, Slot

if TYPE_CHECKING:
    from .scoreboard import Scoreboard

_SILENT_NANOSECONDS = 3 * NANOSECONDS
"""After so long a worker's main loop hangs: it goes round once a second."""


class WriterRow:
    """A worker's own row, for it to write.

    :param board: the table
    :param start: where the row begins in it
    """

    def __init__(self, board: Scoreboard, start: int) -> None:
        self.cells = board.cells
        self._board = board
        self._start = start
        first = start + Cell.WORDS
        self.slots = range(first, first + board.threads * Slot.WORDS, Slot.WORDS)
        """Where each of its slots begins."""

    def enter(self) -> None:
        """Say which process this worker is."""
        self.cells[self._start + Cell.START_TIME] = start_time(os.getpid())
        self.cells[self._start + Cell.PID] = os.getpid()

    def set_ready(self) -> None:
        """Say that the app is loaded and requests are taken."""
        self.beat()
        self.cells[self._start + Cell.READY] = 1

    def beat(self) -> None:
        """Say that the main loop of this worker goes round."""
        self.cells[self._start + Cell.HEARTBEAT] = time.monotonic_ns()

    def note_held(self, count: int) -> None:
        """Say how many connections this worker has accepted and not answered yet."""
        self.cells[self._start + Cell.HELD] = count

    def take_no_more(self) -> None:
        """Say that this worker accepts nothing, however little it holds."""
        self.cells[self._start + Cell.HELD] = -1

    def others(self) -> tuple[int | None, bool]:
        """Return what the other workers hold that take requests; one that hangs is none.

        :returns: what that one holds that holds least, ``None`` if there is no other; and whether
            one of those that hold so little has a thread that runs no request
        """
        since = time.monotonic_ns() - _SILENT_NANOSECONDS
        mine, board = self.cells[self._start], self._board
        others = [row for row in board.held() if row.age != mine and row.beat > since]
        least = min((row.requests for row in others), default=None)
        return least, any(
            board.has_free_slot(row.number) for row in others if row.requests == least
        )

    @property
    def is_told_to_leave(self) -> bool:
        """Whether this worker is being recycled."""
        return bool(self.cells[self._start + Cell.TOLD])

    def leave(self) -> None:
        """Say that this worker ends by its own will: whoever does not was killed."""
        self.cells[self._start + Cell.LEFT] = 1
