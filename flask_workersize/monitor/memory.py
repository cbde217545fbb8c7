"""The eyes of the memory guard: observe, ask :mod:`flask_workersize.monitor.guard`, have it done.

Cheap figures are read often, costly ones seldom: what the control group uses at every turn, the
resident memory of each worker only when memory gets short, and what is a worker's own (which the
kernel counts page by page) only to choose among those with most.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, replace

from ..log import say
from ..resources.gauge import MemoryGauge, MemoryState
from ..resources.processes import process_memory, resident_memory
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import GuardState, Snapshot, WorkerStats
from ..sizing.plan import MB, SizingPlan
from .guard import (
    CRITICAL_SHARE,
    WARM_REQUESTS,
    Action,
    Done,
    Kind,
    Observation,
    Rules,
    Worker,
    decide,
    decide_alone,
    fitting_workers,
)
from .scaling import Scaler

OFTEN_SECONDS = 0.05
"""How often memory is read near the limit: a leak of 0.5 MB a request grows by some MB then."""

FASTEST_BYTES = 3 * 1024 * MB
"""Memory that is taken in a second at the most, seen with five workers of 60 MB each: so long what
is free lasts."""

VERY_OFTEN_SECONDS = 0.01
"""How often while it acts: what was started is followed by the next step at once."""

ACTING_SECONDS = 5.0
"""How long after an action that is."""

EXPECTING_SECONDS = 0.02
"""How often while a worker is about to be ready, or warm: it is to be measured before it grows."""

WARMING_SECONDS = 0.5
"""How long after a request a worker counts as about to be warm."""

SOON_SECONDS = 0.25
"""How often where a worker is new and not yet measured, or has a bound of its own."""

SELDOM_SECONDS = 0.5
"""How often where there is memory enough, and where the machine is the limit."""

GROWTH_SECONDS = 0.4
"""Time over which growth is measured: a single burst is no trend."""

CANDIDATES = 4
"""Workers whose own memory is read to choose one: those with most resident memory."""

PEAK_SECONDS = 3600.0
"""How long the most that a worker had is remembered."""

LOG_SECONDS = 60.0
"""How often the same is said."""

LATELY_SECONDS = 30.0
"""How long a recycling shows in the state of the guard."""


@dataclass
class _Known:
    """What is known of a worker's memory.

    :param first_bytes: resident memory when it was first measured
    :param warm_bytes: own memory when it was warm; ``None`` before
    """

    first_bytes: int
    warm_bytes: int | None = None


class MemoryNote:
    """Writes down how near memory is to its limit, and does nothing about it.

    :param board: the shared table
    :param hand: sees that there are as many workers as a limit that has changed wants
    :param gauge: reads how near memory is to its limit
    """

    interval = SELDOM_SECONDS

    def __init__(self, board: Scoreboard, scaler: Scaler, gauge: MemoryGauge) -> None:
        self._board = board
        self._scaler = scaler
        self._gauge = gauge

    def run(self, now: float, snapshot: Snapshot) -> None:
        """Write it down."""
        state = self._gauge.read()
        self._board.note_usage(state.limit_bytes, state.used_bytes)
        self._scaler.reconcile(snapshot)

    def end(self, snapshot: Snapshot) -> None:
        """Do nothing."""


class MemoryTask:
    """Keeps a server below its limit on memory.

    :param board: the shared table
    :param plan: the plan that the server was started with
    :param rules: what the operator set
    :param hand: gets done what is decided
    :param gauge: reads how near memory is to its limit
    """

    def __init__(
        self, board: Scoreboard, plan: SizingPlan, rules: Rules, scaler: Scaler, gauge: MemoryGauge
    ) -> None:
        self._board = board
        self._planned_with_mb = plan.memory_available_mb
        self._is_alone = plan.server == "waitress"
        self._rules = rules
        self._scaler = scaler
        self._gauge = gauge
        # Recycling, which may happen often, does not make it forget how growing back went.
        self._recent: deque[Done] = deque(maxlen=32)
        self._changes: deque[Done] = deque(maxlen=200)
        self._known: dict[int, _Known] = {}
        # There are some already where the monitor before this one has died.
        self._found = set() if self._is_alone else {row.age for row in board.read().ready}
        self._fresh: deque[int] = deque(maxlen=8)
        self._usage: deque[tuple[float, int]] = deque(maxlen=64)
        self._peak = 0
        self._peak_at = 0.0
        self._oom_kills = board.read().workers_oom_killed
        self._oom_kill_at: float | None = None
        self._free_since: float | None = None
        self._short_since: float | None = None
        self._measured = (0, False)
        self._met: Snapshot | None = None
        self._has_new = False
        self._said: dict[Kind, float] = {}
        self._surge = self._fewer = 0
        self._served: dict[int, int] = {}
        self._warming_at = float("-inf")
        self.interval = SELDOM_SECONDS
        board.guard = GuardState.OK

    def run(self, now: float, snapshot: Snapshot) -> None:
        """Observe, decide, act."""
        state = self._gauge.read()
        self._board.note_usage(state.limit_bytes, state.used_bytes)
        share = state.used_bytes / state.limit_bytes
        is_free = share < self._rules.recycle_share
        self._free_since = (self._free_since or now) if is_free else None
        self._short_since = None if is_free else (self._short_since or now)
        if (state.limit_bytes, state.is_group) != self._measured:
            # Another limit, or another group that is fullest now: no growth.
            self._measured = state.limit_bytes, state.is_group
            self._usage.clear()
        if snapshot.is_leaving:
            self.interval = SELDOM_SECONDS
            return
        if snapshot.workers_oom_killed > self._oom_kills:
            self._oom_kills, self._oom_kill_at = snapshot.workers_oom_killed, now
        self._meet_new(snapshot)
        seen = self._observe(now, snapshot, state)
        action = (decide_alone if self._is_alone else decide)(seen, self._rules)
        if action.kind in _DEEDS:
            # What was seen before may be a moment old.
            snapshot = self._board.read()
            if snapshot.is_leaving:
                return
            seen = self._look_closely(self._observe(now, snapshot, state), snapshot)
            action = decide(seen, self._rules)
        self.interval = self._pace(seen)
        if self._is_expecting(now, snapshot):
            self.interval = min(self.interval, EXPECTING_SECONDS)
        if action.kind is not Kind.NOTHING:
            self._act(now, action, seen, snapshot)
        self._scaler.reconcile(snapshot)
        self._show(now, action)

    def end(self, snapshot: Snapshot) -> None:
        """Do nothing."""

    def _pace(self, seen: Observation) -> float:
        acted_at = seen.recent[-1].at if seen.recent else float("-inf")
        if seen.is_short(self._rules) and seen.now < acted_at + ACTING_SECONDS:
            return VERY_OFTEN_SECONDS
        is_bound = self._rules.worker_max_bytes is not None
        longest = SOON_SECONDS if self._has_new or is_bound else SELDOM_SECONDS
        if not seen.is_group:
            return longest
        free = CRITICAL_SHARE * seen.limit_bytes - seen.used_bytes
        return min(max(free / FASTEST_BYTES, OFTEN_SECONDS), longest)

    def _is_expecting(self, now: float, snapshot: Snapshot) -> bool:
        """Return whether a worker is about to be ready, or warm."""
        served = {row.age: row.served for row in snapshot.ready if self._warm(row.age) is None}
        if any(count > self._served.get(age, 0) for age, count in served.items()):
            self._warming_at = now
        self._served = served
        is_warming = now < self._warming_at + WARMING_SECONDS
        return len(snapshot.ready) < snapshot.wanted or (bool(served) and is_warming)

    def _growth(self, now: float, used: int) -> float:
        """Return by how many bytes memory has grown in a second, lately."""
        self._usage.append((now, used))
        while now - self._usage[0][0] > GROWTH_SECONDS and len(self._usage) > 2:
            self._usage.popleft()
        begun, before = self._usage[0]
        return (used - before) / max(now - begun, GROWTH_SECONDS)

    def _meet_new(self, snapshot: Snapshot) -> None:
        """Measure a worker when it is ready, and when it is warm: what comes then is growth."""
        if snapshot is self._met:
            return
        self._has_new = True
        ages = {row.age for row in snapshot.workers}
        for age in self._known.keys() - ages:
            del self._known[age]
        for row in snapshot.ready:
            known = self._known.get(row.age)
            if known is None:
                own = self._measure(row)
                if row.age in self._found:
                    # Nobody knows how large it was at its start: all that it has may be growth.
                    self._known.setdefault(row.age, _Known(0)).warm_bytes = 0
                elif own is not None:
                    self._fresh.append(own)
                return
            if known.warm_bytes is None and row.served >= WARM_REQUESTS:
                known.warm_bytes = self._measure(row)
                return
        self._met, self._has_new = snapshot, False

    def _measure(self, row: WorkerStats) -> int | None:
        """Return a worker's own memory, and write it down."""
        memory = process_memory(row.pid)
        if memory is None:
            return None
        self._board.note_memory(row.number, memory.rss_bytes, memory.pss_bytes, memory.uss_bytes)
        known = self._known.setdefault(row.age, _Known(memory.rss_bytes))
        # Where the system does not tell, as to another user, what it has more than at its start.
        more = max(memory.rss_bytes - known.first_bytes, 0)
        own = more if memory.uss_bytes is None else memory.uss_bytes
        self._note_peak(own)
        return own

    def _note_peak(self, own: int) -> None:
        """Remember the most that a worker had, for a while: an outlier is not the rule."""
        now = time.monotonic()
        if own >= self._peak or now > self._peak_at + PEAK_SECONDS:
            self._peak, self._peak_at = own, now

    def _observe(self, now: float, snapshot: Snapshot, state: MemoryState) -> Observation:
        seen = Observation(
            now=now,
            limit_bytes=state.limit_bytes,
            used_bytes=state.used_bytes,
            is_group=state.is_group,
            planned=snapshot.wanted + self._fewer - self._surge,
            wanted=snapshot.wanted,
            workers=(),
            fresh_bytes=min(self._fresh, default=0),
            peak_bytes=self._peak,
            oom_kill_at=self._oom_kill_at,
            recent=tuple(sorted([*self._recent, *self._changes], key=lambda done: done.at)),
            free_since=self._free_since,
            growth_bytes=self._growth(now, state.used_bytes),
            short_since=self._short_since,
        )
        is_bound = self._rules.worker_max_bytes is not None
        is_changed = bool(self._fewer or self._surge or self._oom_kill_at)
        if not seen.is_short(self._rules) and not is_bound and not is_changed:
            # Nothing is to be decided, many times a second.
            return seen
        own: dict[int, int] = {}
        if seen.is_short(self._rules) or is_bound or self._fewer:
            own = _estimated(snapshot)
            self._note_peak(max(own.values(), default=0))
            seen = replace(seen, peak_bytes=self._peak)
        workers = tuple(
            Worker(row.age, own.get(row.age, 0), self._warm(row.age), row.is_ready, row.is_leaving)
            for row in snapshot.workers
        )
        return replace(seen, workers=workers)

    def _warm(self, age: int) -> int | None:
        known = self._known.get(age)
        return None if known is None else known.warm_bytes

    def _look_closely(self, seen: Observation, snapshot: Snapshot) -> Observation:
        """Measure those that seem to have most memory of their own."""
        most = {worker.age for worker in seen.ready[:CANDIDATES]}
        own = {row.age: self._measure(row) for row in snapshot.workers if row.age in most}
        workers = tuple(
            replace(worker, own_bytes=own.get(worker.age) or worker.own_bytes)
            for worker in seen.workers
        )
        return replace(seen, workers=workers, peak_bytes=self._peak)

    def _act(self, now: float, action: Action, seen: Observation, snapshot: Snapshot) -> None:
        row = next(
            (r for r in snapshot.workers if action.worker and r.age == action.worker.age), None
        )
        if action.kind is Kind.RECYCLE and (row is None or not self._scaler.recycle(row)):
            return
        if action.kind in _STEPS:
            self._surge += _STEPS[action.kind][0]
            self._fewer += _STEPS[action.kind][1]
            self._scaler.set_target("guard", self._surge - self._fewer)
        if action.kind is Kind.EXIT and self._rules.exits and not self._board.is_exit_asked:
            self._board.ask_to_exit()
            self._scaler.end_server()
        if action.kind in (Kind.FEWER, Kind.MORE):
            self._changes.append(Done(now, action))
        elif action.kind in (Kind.RECYCLE, Kind.REPLACE, Kind.FINISH):
            self._recent.append(Done(now, action))
        if action.kind in (Kind.FEWER, Kind.FINISH, Kind.MORE):
            self._oom_kill_at = None
        self._say(now, action, seen, row.pid if row else 0)

    def _say(self, now: float, action: Action, seen: Observation, pid: int) -> None:
        """Say what was done and why: at once, and then the same not too often."""
        if now < self._said.get(action.kind, float("-inf")) + LOG_SECONDS:
            return
        self._said[action.kind] = now
        what = {
            Kind.RECYCLE: f"worker {pid} is recycled",
            Kind.REPLACE: f"one more worker is started, then worker {pid} ends",
            Kind.FEWER: "one worker fewer",
            Kind.MORE: "one worker more",
            Kind.WARN: "short",
            Kind.EXIT: "the server is asked to end" if self._rules.exits else "/ready says no",
        }.get(action.kind)
        if what is None:
            return
        level = logging.INFO if action.kind in _USUAL else logging.WARNING
        say(level, f"memory: {what}: {action.reason}{self._advice(action, seen)}.")

    def _advice(self, action: Action, seen: Observation) -> str:
        """Return what to set, where the plan is too large."""
        if action.kind is Kind.EXIT:
            return (
                "; give it more memory, or find what grows. NOW_LMS_MEMORY_GUARD=exit lets it end "
                "before the kernel ends it, for the service manager to start it again"
                if not self._rules.exits
                else ""
            )
        if action.kind not in (Kind.FEWER, Kind.WARN) or not seen.is_group or self._is_alone:
            return ""
        workers = fitting_workers(seen, self._rules)
        memory_mb = max(self._planned_with_mb // workers, 1)
        return f"; set NOW_LMS_WORKERS={workers} or NOW_LMS_WORKER_MEMORY_MB={memory_mb}"

    def _show(self, now: float, action: Action) -> None:
        """Write down the state of the guard."""
        lately = {done.action.kind for done in self._recent if now - done.at < LATELY_SECONDS}
        if action.kind is Kind.EXIT:
            state = GuardState.CRITICAL
        elif action.kind is Kind.WARN:
            state = GuardState.WARN
        elif self._fewer:
            state = GuardState.REDUCED
        elif lately & {Kind.RECYCLE, Kind.REPLACE}:
            state = GuardState.RECYCLING
        else:
            state = GuardState.OK
        self._board.guard = state


def _estimated(snapshot: Snapshot) -> dict[int, int]:
    """Return about how much memory each worker has of its own, by its age.

    What it shares is taken from its last sample, and becomes less with time: it has at least this.
    Of one without a sample nothing is known.
    """
    resident = {row.age: resident_memory(row.pid) or 0 for row in snapshot.workers if row.memory}
    least = min(resident.values(), default=0)
    own: dict[int, int] = {}
    for row in snapshot.workers:
        if row.memory is not None:
            uss = row.memory.uss_bytes
            shared = least if uss is None else row.memory.rss_bytes - uss
            own[row.age] = max(resident[row.age] - shared, 0)
    return own


_USUAL = frozenset({Kind.RECYCLE, Kind.REPLACE, Kind.MORE})

_STEPS = {
    Kind.REPLACE: (1, 0),
    Kind.FINISH: (-1, 0),
    Kind.FEWER: (0, 1),
    Kind.MORE: (0, -1),
}
"""What each action adds to the workers that stand in for others, and to those that are missing."""

_DEEDS = frozenset({Kind.RECYCLE, *_STEPS})
"""Actions that need to know exactly who is there and has how much."""
