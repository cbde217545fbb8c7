"""How the monitor gets done what the guard wants: by public means alone."""

from __future__ import annotations

import signal
import time
from typing import Protocol

from .peers import Peer
from .scoreboard import Scoreboard, Snapshot, WorkerRow

CONFIRM_SECONDS = 5.0
"""How long a change of the number of workers may take before it is asked for once more."""


class Hand(Protocol):
    """Changes the number of workers, and lets single ones go."""

    def recycle(self, row: WorkerRow) -> bool:
        """Let a worker finish what it does and end; another one comes in its place."""

    def adjust(self, who: str, count: int) -> None:
        """Want as many workers more, or fewer, than planned; what several want is added up."""

    def press_on(self, snapshot: Snapshot) -> None:
        """See that there are as many workers as wanted."""

    def end_server(self) -> None:
        """Let the whole server end."""


class BoardHand:
    """For a master of ours: it reads in the scoreboard what is wanted.

    :param board: the shared table
    :param master: the master's process
    """

    def __init__(self, board: Scoreboard, master: int) -> None:
        self._board = board
        self._master = Peer.of(master)
        self._wanted: dict[str, int] = {}

    def recycle(self, row: WorkerRow) -> bool:
        """Let a worker finish what it does and end."""
        self._board.tell_to_leave(row.number)
        return Peer(row.pid, row.start_time).signal(signal.SIGTERM)

    def adjust(self, who: str, count: int) -> None:
        """Want as many workers more, or fewer, than planned."""
        self._wanted[who] = count
        adjustment = sum(self._wanted.values())
        if adjustment != self._board.adjustment:
            self._board.adjustment = adjustment
            self._wake()

    def press_on(self, snapshot: Snapshot) -> None:
        """Do nothing: the master looks by itself, once a second."""

    def end_server(self) -> None:
        """Let the whole server end."""
        self._master.signal(signal.SIGTERM)

    def _wake(self) -> None:
        # As if a child had ended. Where we have fewer rights than the master it has to wait.
        self._master.signal(signal.SIGCHLD)


class SignalHand(BoardHand):
    """For gunicorn's own master: TTIN and TTOU, one at a time, each confirmed.

    Several that are sent at once count as one, and a reload sets the number back.
    """

    def __init__(self, board: Scoreboard, master: int) -> None:
        super().__init__(board, master)
        self._sent_at = float("-inf")
        self._seen = 0
        self.is_refused = False

    def press_on(self, snapshot: Snapshot) -> None:
        """Send the next signal, once the last one was obeyed."""
        there = sum(not row.is_leaving for row in snapshot.rows)
        now = time.monotonic()
        is_pending = there == self._seen and now < self._sent_at + CONFIRM_SECONDS
        is_asked_for = bool(self._board.adjustment) or self._sent_at > float("-inf")
        if snapshot.is_leaving or not is_asked_for or there == snapshot.wanted or is_pending:
            return
        if any(not row.is_ready or row.is_leaving for row in snapshot.rows):
            return
        number = signal.SIGTTIN if there < snapshot.wanted else signal.SIGTTOU
        self.is_refused = not self._master.signal(number)
        self._sent_at, self._seen = now, there

    def _wake(self) -> None:
        pass


class NoHand(BoardHand):
    """For a server of one process, which has no workers to let go."""

    def recycle(self, row: WorkerRow) -> bool:
        """Do nothing."""
        return False

    def adjust(self, who: str, count: int) -> None:
        """Do nothing."""

    def press_on(self, snapshot: Snapshot) -> None:
        """Do nothing."""


def raise_oom_score() -> None:
    """Have the kernel, if it must end a process for want of memory, choose this worker first.

    Its master and the monitor can start another one (proc_pid_oom_score_adj(5)); to raise one's
    own score needs no right.
    """
    path = "/proc/self/oom_score_adj"
    try:
        with open(path, encoding="ascii") as file:
            score = int(file.read())
        with open(path, "w", encoding="ascii") as file:
            file.write(str(min(1000, score + OOM_SCORE_MORE)))
    except (OSError, ValueError):
        # No Linux, or no /proc: nothing to be done.
        pass


OOM_SCORE_MORE = 200
"""Thousandths of all memory by which a worker counts as larger: more than a master ever has."""
