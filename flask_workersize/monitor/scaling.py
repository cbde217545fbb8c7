"""How the monitor changes the number of workers, by public means alone."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..resources.process_handle import ProcessHandle
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import WorkerStats
from .loop import Look

CONFIRM_SECONDS = 5.0
"""How long adding a worker may take before it is requested again."""

SETTLED_SECONDS = 5.0
"""How long there have to be the same workers before one of them counts as too many: after a reload
the old ones leave one by one."""

LEAVE_SECONDS = 120.0
"""How long removing a worker may take: it finishes its request first."""


class Scaler:
    """Changes the number of workers, and lets single ones go; a server of one process has none."""

    def __init__(self, board: Scoreboard, master: int) -> None:
        self._board = board
        self._master = ProcessHandle.of(master)

    def recycle(self, row: WorkerStats) -> bool:
        """Let a worker finish its requests and end, to be replaced; return whether it will."""
        return False

    def choose(self, rows: Sequence[WorkerStats], count: int) -> Sequence[WorkerStats]:
        """Return the workers to remove, and mark them; empty if the master chooses."""
        return ()

    def release(self, rows: Sequence[WorkerStats]) -> None:
        """Let these workers end."""

    def scale(self) -> None:
        """See soon that there are as many workers as the scoreboard wants."""

    def reconcile(self, look: Look) -> None:
        """See that there are as many workers as wanted."""

    def end_server(self) -> None:
        """Let the whole server end."""
        self._master.signal(signal.SIGTERM)


class ArbiterScaler(Scaler):
    """For a master of ours: it reads in the scoreboard what is wanted, once a second."""

    def __init__(self, board: Scoreboard, master: int) -> None:
        super().__init__(board, master)
        self._wanted = board.wanted

    def choose(self, rows: Sequence[WorkerStats], count: int) -> Sequence[WorkerStats]:
        """Choose workers that run nothing, which leave at once, then those that began last.

        Long requests may take memory, too, so better wait for their workers. While some workers
        start or leave, the master lets the oldest go.
        """
        if len(rows) != self._board.wanted or not all(row.is_ready for row in rows):
            return ()
        staying = [row for row in rows if not row.is_leaving]
        staying.sort(key=lambda row: max(row.running_seconds, default=0.0))
        chosen = staying[: min(count, len(staying) - 1)]
        for row in chosen:
            self._board.tell_to_leave(row.number)
        return chosen

    def release(self, rows: Sequence[WorkerStats]) -> None:
        """Let workers finish their requests and end; the master replaces none of them."""
        for row in rows:
            ProcessHandle(row.pid, row.start_time).signal(signal.SIGTERM)

    def recycle(self, row: WorkerStats) -> bool:
        """Let a worker finish its requests and end."""
        # Before the signal: a worker that is being recycled need not wait for the server's stop.
        self._board.tell_to_leave(row.number)
        is_sent = ProcessHandle(row.pid, row.start_time).signal(signal.SIGTERM)
        if is_sent:
            self._board.count("recycled")
        else:
            self._board.tell_to_leave(row.number, False)
        return is_sent

    def scale(self) -> None:
        """Wake the master if it has to start or end workers."""
        if self._board.wanted != self._wanted:
            self._wanted = self._board.wanted
            self._wake()

    def _wake(self) -> None:
        # As if a child had ended. Without the right to signal the master it has to wait.
        self._master.signal(signal.SIGCHLD)


class SignalScaler(ArbiterScaler):
    """For gunicorn's own master: TTIN and TTOU, one at a time, each confirmed.

    Several that are sent at once count as one, and a reload sets the number back.
    """

    def __init__(self, board: Scoreboard, master: int) -> None:
        super().__init__(board, master)
        self._sent_at = float("-inf")
        self._seen: frozenset[int] = frozenset()
        self._ages: frozenset[int] = frozenset()
        self._changed_at = float("-inf")
        self._has_said = False

    def choose(self, rows: Sequence[WorkerStats], count: int) -> Sequence[WorkerStats]:
        """Leave the choice to the master, which would replace a worker that ends."""
        return ()

    def reconcile(self, look: Look) -> None:
        """Send the next signal, once the last one was obeyed."""
        if self._board.wanted == self._board.planned and self._sent_at == float("-inf"):
            return
        snapshot = look()
        ages = frozenset(row.age for row in snapshot.workers if not row.is_leaving)
        there, now = len(ages), time.monotonic()
        patience = CONFIRM_SECONDS if there < snapshot.wanted else LEAVE_SECONDS
        if ages != self._ages:
            self._changed_at = now if self._ages else self._changed_at
            self._ages = ages
        # After a reload there may be as many as before, but they are others. Those of before, and
        # those that the master has let go, may still leave: only what lasts is one too many.
        is_pending = ages == self._seen and now < self._sent_at + patience
        is_pending |= there > snapshot.wanted and now < self._changed_at + SETTLED_SECONDS
        is_final = all(row.is_ready and not row.is_leaving for row in snapshot.workers)
        if snapshot.is_leaving or there == snapshot.wanted or is_pending or not is_final:
            return
        number = signal.SIGTTIN if there < snapshot.wanted else signal.SIGTTOU
        self._sent_at, self._seen = now, ages
        if not self._master.signal(number) and not self._has_said:
            self._has_said = True
            self._board.events.tell(logging.WARNING, REFUSED_WARNING)

    def _wake(self) -> None:
        pass


REFUSED_WARNING = (
    "cannot add or remove workers: not allowed to signal gunicorn. Use flask serve-prod."
)


def raise_oom_score() -> None:
    """Let the OOM killer, if it must, choose this worker before its master and the monitor.

    Those can replace it (proc_pid_oom_score_adj(5)); raising one's own score needs no right.
    """
    path = Path("/proc/self/oom_score_adj")
    # On other systems, and without /proc, there is no such file.
    with suppress(OSError):
        score = int(path.read_text("ascii"))
        path.write_text(str(min(1000, score + OOM_SCORE_MORE)), "ascii")


OOM_SCORE_MORE = 200
"""Thousandths of all memory by which a worker counts as larger: more than a master ever has."""
