"""Logs how a worker came to its end: killed by the OOM killer, or otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ..log import say
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot, WorkerStats
from ..sizing.plan import MB
from .loop import Look, Task
from .remedy import Remedy, others_bytes

INTERVAL_SECONDS = 0.5

OFTEN_SECONDS = 0.05
"""How often while memory is short, and shortly after: a kill is to be answered before the next."""

NEAR_SHARE = 0.7
"""Share of the limit from which that is."""

LATELY_SECONDS = 2.0

EXPIRE_SECONDS = 5.0
"""How long a worker may take to be gone after its OOM kill was counted; after that it was another
process of the group."""

SAY_SECONDS = 10.0
"""How often the same is logged; what happened meanwhile is counted."""


class OomDetector(Task):
    """Compares the kernel's own count before and after a worker is gone.

    ``count`` returns how many processes the OOM killer has killed; ``None`` if the system does not
    count them.
    """

    interval = INTERVAL_SECONDS

    def __init__(self, board: Scoreboard, remedy: Remedy, count: Callable[[], int | None]) -> None:
        self._board = board
        self._remedy = remedy
        self._count = count
        self._before = count()
        # A monitor that is started again goes on where the one before it left off.
        self._crashed = board.read().stored["crashed"]
        self._known = {(row.pid, row.start_time) for row in board.killed()}
        self._gone: list[WorkerStats] = []
        self._pending = self._unsaid = 0
        self._say_again = self._say_others_again = self._expires = float("-inf")
        self._near_at = float("-inf")

    def run(self, now: float, look: Look) -> None:
        """Find who is gone, and whether the OOM killer ended them."""
        snapshot = look()
        stored = snapshot.stored
        if stored["memory_used_bytes"] > NEAR_SHARE * stored["memory_limit_bytes"]:
            self._near_at = now
        is_near = now < self._near_at + LATELY_SECONDS
        self.interval = OFTEN_SECONDS if is_near else INTERVAL_SECONDS
        if kills := self._new_kills():
            # It counts before the process has ended, and that is before its master knows.
            self._pending += kills
            self._expires = now + EXPIRE_SECONDS
            self._board.count("oom_kills", kills)
        elif now >= self._expires and self._pending:
            self._say_others(now, snapshot)
        crashed = snapshot.stored["crashed"] - self._crashed
        self._crashed += crashed
        if crashed:
            killed = {(row.pid, row.start_time): row for row in self._board.killed()}
            gone = [row for name, row in killed.items() if name not in self._known]
            self._gone += gone
            self._known = set(killed)
            self._remedy.note(now, gone)
        by_kernel = min(crashed, self._pending)
        self._pending -= by_kernel
        self._unsaid += by_kernel
        self._board.workers_oom_killed += by_kernel
        if crashed > by_kernel:
            self._say_killed(crashed - by_kernel)
        if self._unsaid and now >= self._say_again:
            self._say_again = now + SAY_SECONDS
            self._say_oom("worker", self._gone, self._unsaid, snapshot, now)
            self._unsaid = 0
        if not self._unsaid:
            self._gone = []

    def end(self, snapshot: Snapshot) -> None:
        """Log whether the OOM killer ended the master itself."""
        if self._new_kills():
            is_alone = self._remedy.is_alone
            who, rows = ("server", snapshot.workers) if is_alone else ("master", ())
            self._say_oom(who, rows, 1, snapshot, self._expires)

    def _new_kills(self) -> int:
        before, self._before = self._before, self._count()
        return 0 if before is None or self._before is None else max(self._before - before, 0)

    def _say_oom(
        self, who: str, gone: Sequence[WorkerStats], count: int, snapshot: Snapshot, now: float
    ) -> None:
        plan = self._remedy.plan
        sizes = [(row.memory.rss_bytes // MB, row.pid) for row in gone if row.memory]
        size, pid = max(sizes, default=(None, 0))
        named = f"{'a' if who == 'worker' else 'the'} {who} was OOM-killed"
        if size is not None:
            named = f"{who} {pid} was OOM-killed at {size} MB"
        if count > 1:
            named += f", and {count - 1} more"
        planned = f"{plan.workers} × {plan.worker_memory_mb} MB"
        limit = snapshot.stored["memory_limit_bytes"]
        known = [row.private_bytes or row.memory.rss_bytes for row in gone if row.memory]
        least = max(known, default=2 * plan.worker_memory_mb * MB)
        # While some that are too many have not left, all of them together did not fit.
        there = len(snapshot.workers)
        together = there + count if there > snapshot.wanted else snapshot.wanted
        self._remedy.note_kill(min(plan.workers, together), least)
        advice = "Give it more memory, or set NOW_LMS_MEMORY_GUARD=exit."
        if not self._remedy.is_alone:
            advice = self._remedy.advise(now, limit, others_bytes(snapshot))
        say(logging.ERROR, f"{named} (limit {limit // MB} MB, plan {planned}). {advice}")

    def _say_others(self, now: float, snapshot: Snapshot) -> None:
        """Log kills of processes that are no workers: removing workers would not help them."""
        count, self._pending = self._pending, 0
        if now < self._say_others_again:
            return
        self._say_others_again = now + SAY_SECONDS
        what = "a process that is" if count == 1 else f"{count} processes that are"
        limit_mb = snapshot.stored["memory_limit_bytes"] // MB
        say(
            logging.WARNING,
            f"memory: {what} not a worker of this server got OOM-killed (limit {limit_mb} MB): "
            "probably a program that the app runs, or a neighbour. The workers stay.",
        )

    def _say_killed(self, count: int) -> None:
        names = ", ".join(str(row.pid) for row in self._gone if row.pid) or "unknown"
        kernel = "does not count OOM kills" if self._before is None else "counted no OOM kill"
        workers = f"{count} worker{'' if count == 1 else 's'} crashed or got killed by a signal"
        say(logging.WARNING, f"{workers} (process {names}); the kernel {kernel}.")
