"""Logs why a worker ended: by the OOM killer, or otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot, WorkerStats
from ..sizing.plan import MB
from .loop import Look, Task
from .remedy import Remedy, others_bytes

INTERVAL_SECONDS = 0.5

OFTEN_SECONDS = 0.05
"""How often while memory is short, and shortly after: handle a kill before the next one."""

LATELY_SECONDS = 2.0

EXPIRE_SECONDS = 5.0
"""How long a worker may take to be gone after its OOM kill was counted; after that it was another
process of the group."""

SAY_SECONDS = 10.0
"""How often the same line is logged; what happens in between is counted."""


class OomDetector(Task):
    """Compares the kernel's own count before and after a worker is gone.

    The last count is in the scoreboard: a restarted monitor continues where the one before it
    stopped. ``count`` returns how many processes the OOM killer has killed, ``None`` if
    the system does not count them; ``is_short`` whether memory is short.
    """

    interval = INTERVAL_SECONDS

    def __init__(
        self,
        board: Scoreboard,
        remedy: Remedy,
        count: Callable[[], int | None],
        is_short: Callable[[], bool] = lambda: False,
    ) -> None:
        self._board = board
        self._remedy = remedy
        self._count = count
        self._is_short = is_short
        self._gone: list[WorkerStats] = []
        self._pending = self._unsaid = 0
        self._say_again = self._say_others_again = self._expires = float("-inf")
        self._near_at = float("-inf")
        if board.oom_counted < 0:
            # Kills from before the start are not of our workers.
            self._new_kills()

    def run(self, now: float, look: Look) -> None:
        """Find who is gone, and whether the OOM killer ended them."""
        if self._is_short():
            self._near_at = now
        is_near = now < self._near_at + LATELY_SECONDS
        self.interval = OFTEN_SECONDS if is_near else INTERVAL_SECONDS
        # It counts before the process has ended, and that is before its master knows.
        pending = self._pending_kills()
        if pending > self._pending:
            self._expires = now + EXPIRE_SECONDS
        crashed = self._new_crashes(now)
        by_kernel = min(crashed, pending)
        pending -= by_kernel
        self._board.workers_oom_killed += by_kernel
        self._unsaid += by_kernel
        if pending and now >= self._expires:
            self._board.others_oom_killed += pending
            self._say_others(now, pending)
            pending = 0
        self._pending = pending
        if crashed > by_kernel:
            self._say_killed(crashed - by_kernel)
        if self._unsaid and now >= self._say_again:
            self._say_again = now + SAY_SECONDS
            self._say_oom("worker", self._gone, self._unsaid, look(), now)
            self._unsaid = 0
        if not self._unsaid:
            self._gone = []

    def end(self, snapshot: Snapshot) -> None:
        """Log whether the OOM killer ended the master itself."""
        if self._new_kills():
            is_alone = self._remedy.is_alone
            who, rows = ("server", snapshot.workers) if is_alone else ("master", ())
            self._say_oom(who, rows, 1, snapshot, self._expires)

    def _pending_kills(self) -> int:
        """Return how many kills are counted, and not yet known to be of a worker or another."""
        self._new_kills()
        known = self._board.workers_oom_killed + self._board.others_oom_killed
        return self._board.figure("oom_kills") - known

    def _new_kills(self) -> int:
        """Return how many processes were killed since the last check, and remember the count."""
        board, count = self._board, self._count()
        if count is None:
            return 0
        kills = max(count - board.oom_counted, 0) if board.oom_counted >= 0 else 0
        board.oom_counted = count
        board.count("oom_kills", kills)
        return kills

    def _new_crashes(self, now: float) -> int:
        """Return how many workers have crashed since the last check, and remember them."""
        before, crashed = self._board.crashes_seen, self._board.figure("crashed")
        if crashed > before:
            gone = self._board.crashed(range(before + 1, crashed + 1))
            self._gone += gone
            self._remedy.note(now, gone)
            self._board.crashes_seen = crashed
        return crashed - before

    def _say_oom(
        self, who: str, gone: Sequence[WorkerStats], count: int, snapshot: Snapshot, now: float
    ) -> None:
        remedy = self._remedy
        sizes = [(row.memory.rss_bytes // MB, row.pid) for row in gone if row.memory]
        size, pid = max(sizes, default=(None, 0))
        killed = "was OOM-killed" if size is None else f"was OOM-killed at {size} MB"
        if count > 1:
            killed += f", and {count - 1} more"
        unnamed = f"{'a' if who == 'worker' else 'the'} {who}"
        named = unnamed if size is None else f"{who} {pid}"
        each_mb = remedy.plan.worker_memory_mb
        planned = f"{remedy.planned} × {each_mb} MB"
        limit = snapshot.stored["memory_limit_bytes"]
        known = [row.private_bytes or row.memory.rss_bytes for row in gone if row.memory]
        least = max(known, default=2 * each_mb * MB)
        # While some that are too many have not left, all of them together did not fit.
        there = len(snapshot.workers)
        together = there + count if there > snapshot.wanted else snapshot.wanted
        remedy.note_kill(min(remedy.planned, together), least)
        advice = "Give it more memory, or set NOW_LMS_MEMORY_GUARD=exit."
        if not remedy.is_alone:
            advice = remedy.advise(now, limit, others_bytes(snapshot))
        line = f"{killed} (limit {limit // MB} MB, plan {planned}). {advice}"
        self._board.events.tell(logging.ERROR, f"{named} {line}", f"{unnamed} {line}")

    def _say_others(self, now: float, count: int) -> None:
        """Log kills of processes that are not workers: removing workers would not help."""
        if now < self._say_others_again:
            return
        self._say_others_again = now + SAY_SECONDS
        others = f"{count} processes other than workers were"
        what = "a process other than a worker was" if count == 1 else others
        limit_mb = self._board.figure("memory_limit_bytes") // MB
        self._board.events.tell(
            logging.WARNING,
            f"memory: {what} OOM-killed (limit {limit_mb} MB), "
            "probably a program of the app, a neighbour or the monitor. Keeping the workers.",
        )

    def _say_killed(self, count: int) -> None:
        names = ", ".join(str(row.pid) for row in self._gone if row.pid) or "unknown"
        kernel = (
            "does not count OOM kills" if self._board.oom_counted < 0 else "counted no OOM kill"
        )
        workers = f"{count} worker{'' if count == 1 else 's'} crashed or got killed by a signal"
        line = f"{workers} (process {names}); the kernel {kernel}."
        self._board.events.tell(logging.WARNING, line, f"{workers}; the kernel {kernel}.")
