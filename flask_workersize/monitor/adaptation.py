"""Follows the load: measures it once a second, applies the rule and carries out the move."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

from ..resources.gauge import MemoryState
from ..resources.host import CpuTimes, stolen_share
from ..resources.processes import cpu_seconds
from ..runtime.layout import NANOSECONDS
from ..runtime.queue_times import QueueTotals
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import GuardState, Snapshot, WorkerStats
from ..sizing.adaptive import AdaptiveBounds
from ..sizing.plan import MB
from .adapting import AdaptingRules, Alone, Move, Sample, State, adapt
from .loop import Look, Task
from .observation import CRITICAL_SHARE, Rules, short_share
from .scaling import Scaler

CONTENDED = 0.2
"""Share of request time spent waiting for a CPU above which other processes leave too little."""

UNCROWDED = 0.3
"""Share of a core, with the time spent waiting for one, up to which requests of one process hardly
wait for each other."""

LEAST_THREAD_BYTES = MB // 4
"""Least memory of a thread: its stack and its request."""


class _Seen(NamedTuple):
    """The counters at one moment."""

    at: float
    workers: dict[int, WorkerStats]
    cpu: dict[int, float]
    queue: QueueTotals
    machine: CpuTimes


class _Work(NamedTuple):
    """What a worker has done in a while: requests, and times in seconds.

    ``delay`` was waited for a CPU; the last three are those of requests that ran alone.
    """

    done: int = 0
    cpu: float = 0.0
    busy: float = 0.0
    delay: float = 0.0
    alone: int = 0
    alone_cpu: float = 0.0
    alone_wait: float = 0.0

    @classmethod
    def between(cls, before: WorkerStats, now: WorkerStats) -> _Work:
        """Return what has come since; counts that have fallen are none."""
        pairs = zip(cls._counts(before), cls._counts(now), strict=True)
        done, alone, *times = (max(later - earlier, 0) for earlier, later in pairs)
        cpu, busy, delay, alone_cpu, alone_wait = (time / NANOSECONDS for time in times)
        return cls(done, cpu, busy, delay, alone, alone_cpu, alone_wait)

    @staticmethod
    def _counts(row: WorkerStats) -> tuple[int, ...]:
        alone = row.alone
        times = (row.cpu_ns, row.busy_ns, row.cpu_wait_ns, alone.cpu_ns, alone.wait_ns)
        return (row.served, alone.requests, *times)


Clocks = tuple[Callable[[int], float], Callable[[], CpuTimes]]


class AdaptingTask(Task):
    """Makes the size follow the load, within its bounds.

    ``memory_rules`` are those of the guard, ``None`` if it is off. ``clocks`` are those of the
    CPU time of a process, in seconds, and of the machine.
    """

    interval = 1.0

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        board: Scoreboard,
        bounds: AdaptiveBounds,
        memory_rules: Rules | None,
        scaler: Scaler,
        read_memory: Callable[[], MemoryState],
        clocks: tuple[Callable[[int], float], Callable[[], CpuTimes]] = (
            cpu_seconds,
            CpuTimes.read,
        ),
    ) -> None:
        self._board = board
        self._bounds = bounds
        self._memory_rules = memory_rules or Rules()
        self._scaler = scaler
        self._read_memory = read_memory
        self._cpu_of, self._machine = clocks
        self._state = State()
        self._before: _Seen | None = None

    def run(self, now: float, look: Look) -> None:
        """Measure, decide, act."""
        snapshot = look()
        before, self._before = self._before, self._look(now, snapshot)
        if before is None or snapshot.is_leaving or now <= before.at:
            return
        sample = self._sample(before, self._before, snapshot)
        self._state, move = adapt(self._rules(), self._state, sample)
        if move is not None:
            self._make(move, snapshot.wanted)

    def _rules(self) -> AdaptingRules:
        bounds, cpus = self._bounds, self._board.followed_cpus / 1000
        most = bounds.workers.most
        if bounds.follows_cpus:
            most = max(most if not cpus else math.floor(2 * cpus) + 1, 1)
        return AdaptingRules(
            cpus=cpus,
            most_workers=most,
            most_slots=bounds.threads.most,
            follows_workers=bounds.workers.most > bounds.workers.least,
            follows_slots=bounds.threads.most > bounds.threads.least,
            may_exceed_core=_runs_in_parallel(),
        )

    def _look(self, now: float, snapshot: Snapshot) -> _Seen:
        ready = {row.age: row for row in snapshot.ready}
        return _Seen(
            now,
            ready,
            {age: self._cpu_of(row.pid) for age, row in ready.items()},
            self._board.queue_times.totals(),
            self._machine(),
        )

    def _sample(self, before: _Seen, now: _Seen, snapshot: Snapshot) -> Sample:
        seconds = now.at - before.at
        both = now.workers.keys() & before.workers.keys()
        works = [_Work.between(before.workers[age], now.workers[age]) for age in both]
        work = _Work(*map(sum, zip(*works, strict=True))) if works else _Work()
        used = [max(now.cpu[age] - before.cpu[age], 0) / seconds for age in both]
        idle = max(now.machine.idle - before.machine.idle, 0) / seconds
        cpus = self._board.followed_cpus / 1000
        total = sum(used)
        stolen = stolen_share(before.machine, now.machine)
        delay = work.delay + stolen * work.cpu
        room = max(cpus - total, 0.0)
        if delay >= CONTENDED * work.busy:
            # Other processes compute, too: only the CPU that they leave is free.
            room = min(room, idle)
        wait = max(work.alone_wait - stolen * work.alone_cpu, 0.0)
        alone = Alone(work.alone, work.alone_cpu, wait)
        # A thread that waits for a CPU may hold the GIL meanwhile.
        wanted = [share + one.delay / seconds for share, one in zip(used, works, strict=True)]
        if max(wanted, default=0.0) < UNCROWDED:
            # No worker computes much: requests do not wait for the GIL, alone or not.
            alone = Alone(work.done, work.cpu, max(work.busy - work.cpu - delay, 0.0))
        asked = now.queue.requests - before.queue.requests
        waited = (now.queue.sum_ns - before.queue.sum_ns) / NANOSECONDS
        need, thread = self._needs(snapshot)
        state = self._read_memory()
        return Sample(
            now=now.at,
            seconds=seconds,
            workers=len(now.workers),
            wanted=snapshot.wanted,
            slots=self._board.threads,
            done=work.done,
            cpu_seconds=work.cpu,
            busy=work.busy / seconds,
            waited_seconds=waited / asked if asked > 0 else None,
            cpu_of_group=total / (total + room) if total else 0.0,
            cpu_of_processes=used,
            alone=alone,
            memory_free_bytes=self._free(state, snapshot),
            worker_need_bytes=need,
            thread_need_bytes=thread,
            guard_acts=self._is_guarded(state, snapshot),
        )

    def _share(self, state: MemoryState) -> float:
        return short_share(state, self._memory_rules) if state.is_group else CRITICAL_SHARE

    def _free(self, state: MemoryState, snapshot: Snapshot) -> float:
        """Return what is free before the guard acts, if all workers had their peak at once."""
        to_come = sum(max(row.needed_bytes - row.private_bytes, 0) for row in snapshot.workers)
        return self._share(state) * state.limit_bytes - state.used_bytes - to_come

    def _needs(self, snapshot: Snapshot) -> tuple[float | None, float]:
        """Return what the largest worker needs, and each thread in it."""
        known = [row for row in snapshot.ready if row.memory is not None]
        largest = max(known, key=lambda row: row.needed_bytes, default=None)
        if largest is None or largest.memory is None:
            return None, LEAST_THREAD_BYTES
        first = largest.memory.first_bytes or 0
        thread = (largest.needed_bytes - first) / self._board.threads if first else 0.0
        return largest.needed_bytes, max(thread, LEAST_THREAD_BYTES)

    def _is_guarded(self, state: MemoryState, snapshot: Snapshot) -> bool:
        is_full = state.used_bytes >= self._share(state) * state.limit_bytes
        is_leaving = any(row.is_leaving for row in snapshot.workers)
        acts = snapshot.guard >= GuardState.REDUCED or self._board.stand_ins > 0
        return acts or is_leaving or is_full

    def _make(self, move: Move, wanted: int) -> None:
        workers, threads = wanted, self._board.threads
        self._board.threads = move.slots
        self._board.for_load += move.workers - wanted
        self._scaler.scale()
        line = f"{_shape(workers, threads)} to {_shape(move.workers, move.slots)}: {move.reason}"
        self._board.events.tell(logging.INFO, f"size: {line}.")


def _runs_in_parallel() -> bool:
    """Return whether this Python has no GIL."""
    return not getattr(sys, "_is_gil_enabled", lambda: True)()


def _shape(workers: int, threads: int) -> str:
    return f"{workers} × {threads}"
