"""Says how a worker came to its end: killed by the kernel for want of memory, or otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..log import say
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot, WorkerStats
from ..sizing.plan import MB, SizingPlan

INTERVAL_SECONDS = 0.5

EXPIRE_SECONDS = 10.0
"""How long a worker that the kernel has killed may take to be gone; after that it was another
process of the group."""

SAY_SECONDS = 10.0
"""How often the same is said; what happened meanwhile is counted."""


class OomDetector:
    """Compares the kernel's own count before and after a worker is gone.

    :param board: the shared table
    :param plan: the plan, for what it thought a worker would need
    :param count: returns how many processes the kernel has killed for want of memory; ``None``
        where it does not count
    """

    interval = INTERVAL_SECONDS

    def __init__(
        self, board: Scoreboard, plan: SizingPlan, count: Callable[[], int | None]
    ) -> None:
        self._board = board
        self._plan = plan
        self._count = count
        self._first = count()
        self._before = self._first
        # A monitor that is started again goes on where another one left off.
        begun = board.read()
        self._crashed, self._counted = begun.stored["crashed"], begun.stored["oom_kills"]
        self._rows: tuple[WorkerStats, ...] = ()
        self._known = {(row.pid, row.start_time) for row in board.killed()}
        self._gone: list[WorkerStats] = []
        self._by_kernel = self._untold = 0
        self._due = self._say_again = self._expires = 0.0

    def run(self, now: float, snapshot: Snapshot) -> None:
        """See who is gone, and whether the kernel says that it was the one."""
        if now < self._due:
            return
        self._due = now + INTERVAL_SECONDS
        self._rows = snapshot.workers
        crashed = snapshot.stored["crashed"] - self._crashed
        self._crashed += crashed
        count = self._count()
        if count is not None and self._before is not None and count > self._before:
            # It counts before the process has ended, and that is before its master knows.
            self._by_kernel += count - self._before
            self._expires = now + EXPIRE_SECONDS
            self._board.store("oom_kills", self._counted + count - (self._first or 0))
        elif now >= self._expires:
            self._by_kernel = 0
        self._before = count
        if crashed:
            self._gone += [row for row in self._board.killed() if self._is_new(row)]
        for_memory = min(crashed, self._by_kernel)
        self._by_kernel -= for_memory
        self._untold += for_memory
        self._board.count_oom_killed(for_memory)
        if crashed > for_memory:
            self._say_killed(crashed - for_memory)
        if self._untold and now >= self._say_again:
            self._say_again = now + SAY_SECONDS
            self._say_oom(self._gone, self._untold, snapshot)
            self._untold = 0
        if not self._untold:
            self._gone = []

    def end(self, snapshot: Snapshot) -> None:
        """Say whether the master itself was killed for want of memory."""
        count = self._count()
        if (count or 0) > (self._before or 0):
            rows = [row for row in self._rows if self._plan.server == "waitress"]
            self._say_oom(rows, 1, snapshot, "the server" if rows else "the master")

    def _is_new(self, row: WorkerStats) -> bool:
        name = (row.pid, row.start_time)
        is_new = name not in self._known
        self._known.add(name)
        return is_new

    def _say_oom(
        self, gone: list[WorkerStats], count: int, snapshot: Snapshot, who: str = "worker"
    ) -> None:
        limit = snapshot.stored["memory_limit_bytes"]
        planned = self._plan.worker_memory_mb
        known = [row for row in gone if row.memory]
        row = max(known, key=_resident, default=None)
        unnamed = "a worker" if who == "worker" else who
        named = f"{who} {row.pid} at {_resident(row) // MB} MB" if row else unnamed
        if count > 1:
            named += f" and {count - 1} more"
        say(
            logging.ERROR,
            f"the kernel killed {named} for memory: the limit is {limit // MB} MB, planned were "
            f"{self._plan.workers} × {planned} MB. {self._advice(row, limit)}",
        )

    def _advice(self, row: WorkerStats | None, limit: int) -> str:
        if self._plan.server == "waitress":
            return "Give it more memory, or set NOW_LMS_MEMORY_GUARD=exit."
        if self._plan.workers == 1:
            return "Give it more memory: it has one worker already."
        size = _resident(row) // MB if row else self._plan.worker_memory_mb * 2
        workers = max(1, min(self._plan.workers - 1, limit // MB // max(size, 1)))
        memory = max(1, self._plan.memory_available_mb // workers)
        return f"Set NOW_LMS_WORKERS={workers} or NOW_LMS_WORKER_MEMORY_MB={memory}."

    def _say_killed(self, count: int) -> None:
        names = ", ".join(str(row.pid) for row in self._gone if row.pid)
        kernel = "counts no kill for memory" if self._before is not None else "does not tell why"
        say(
            logging.WARNING,
            f"{count} of these workers {'was' if count == 1 else 'were'} killed by a signal, or "
            f"crashed: {names or 'unknown'}; the kernel {kernel}.",
        )


def _resident(row: WorkerStats) -> int:
    return row.memory.rss_bytes if row.memory else 0
