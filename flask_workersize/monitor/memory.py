"""Memory, one way through: sample, enter it in the ledger, observe, decide, act, log.

Cheap figures are read often, costly ones seldom: what the control group uses at every turn, the
resident memory of each worker only while memory is short, and what is private to a worker (which
the kernel counts page by page) of one worker after the other, and to choose among the largest.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from ..log import say
from ..resources.gauge import MemoryGauge, MemoryState
from ..resources.holders import NO_HOLDERS
from ..resources.processes import (
    ResidentPeak,
    peak_resident_memory,
    process_memory,
    resident_memory,
)
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import GuardState, Snapshot, State, WorkerMemory, WorkerStats
from ..sizing.plan import MB
from . import guard
from .guard import Action, Done, Kind, Observation, Rules
from .loop import Look, Task
from .remedy import Remedy
from .scaling import Scaler
from .surge import Surges

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
"""How often while workers have a bound of their own."""

SELDOM_SECONDS = 0.5
"""How often while there is memory enough, and where the machine is the limit."""

TURN_SECONDS = 2.0
"""How often a worker is measured again that has served nothing since, one after the other."""

SAMPLE_SHARE = 0.005
"""Share of a CPU that sampling those that have served may take, reading the table included."""

GROWTH_SECONDS = 0.4
"""Time over which growth is measured: a single burst is no trend."""

CANDIDATES = 4
"""Workers that are measured to choose one: those with most memory."""

PEAKS_SHARE = 0.005
"""Share of a CPU that reading the peaks of all workers may take while memory comes and goes."""

PEAK_RISES_SECONDS = 0.5
"""How long after an action they are read however often that is."""

LOG_SECONDS = 60.0
"""How often the same is logged."""

HOLDERS_SECONDS = 2.0
"""How long what else holds memory counts as known at least."""

HOLDERS_SHARE = 0.005
"""Share of a CPU that finding it may take: every process of the group is looked at."""

LATELY_SECONDS = 30.0
"""How long a recycling shows in the state of the guard."""


class SamplingTask(Task):
    """Measures workers, and enters that in the ledger: the one place where samples come from."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._sampled_at = float("-inf")
        self._pause = 0.0
        self._cold: dict[int, int] = {}
        self._warming_at = float("-inf")
        self.interval = SELDOM_SECONDS

    def run(self, now: float, look: Look) -> None:
        """Measure the worker that needs it most, if one does."""
        begun = time.thread_time()
        snapshot = look()
        for row in self._due(now, sorted(snapshot.ready, key=_sample_age, reverse=True)):
            # Of one that has just ended there is nothing.
            if found := self.measure([row]):
                self._sampled_at, snapshot = now, _known(snapshot, found)
                cost = time.thread_time() - begun
                self._pause = min(max(cost / SAMPLE_SHARE, OFTEN_SECONDS), TURN_SECONDS)
                break
        self.interval = self._interval(now, snapshot)

    def _due(self, now: float, ready: list[WorkerStats]) -> list[WorkerStats]:
        # A worker that is new or has just got warm is measured at once: what comes then is growth.
        if new := [row for row in ready if _is_new(row)]:
            return new
        waited = now - self._sampled_at
        if waited >= TURN_SECONDS:
            return ready
        return [row for row in ready if _has_served(row)] if waited >= self._pause else []

    def _interval(self, now: float, snapshot: Snapshot) -> float:
        if snapshot.is_leaving:
            return SELDOM_SECONDS
        cold = {row.age: row.served for row in snapshot.ready if _is_cold(row)}
        if any(served > self._cold.get(age, 0) for age, served in cold.items()):
            self._warming_at = now
        self._cold = cold
        is_warming = bool(cold) and now < self._warming_at + WARMING_SECONDS
        if is_warming or len(snapshot.ready) < snapshot.wanted:
            return EXPECTING_SECONDS
        if any(_is_new(row) or _has_served(row) for row in snapshot.ready):
            return min(max(self._pause, OFTEN_SECONDS), SELDOM_SECONDS)
        return SELDOM_SECONDS

    def measure(self, rows: Iterable[WorkerStats]) -> dict[int, WorkerMemory]:
        """Sample workers in full, and return what is known of each age: some milliseconds each."""
        found = {}
        for row in rows:
            memory = process_memory(row.pid)
            if memory is not None and memory.rss_bytes:
                peak = peak_resident_memory(row.pid)
                is_warm = row.served >= guard.WARM_REQUESTS
                found[row.age] = self._board.note_memory(
                    row.number, memory, peak, row.served, is_warm
                )
        return found

    def estimate_peaks(self, rows: Iterable[WorkerStats]) -> dict[int, WorkerMemory]:
        """Read resident memory and its peak, some ten microseconds each."""
        found = {}
        for row in rows:
            peak = peak_resident_memory(row.pid) if row.memory else ResidentPeak()
            if peak.rss_bytes:
                found[row.age] = self._board.note_resident(row.number, peak.rss_bytes, peak)
        return found

    def estimate(self, rows: Iterable[WorkerStats]) -> dict[int, WorkerMemory]:
        """Read resident memory alone, some microseconds each.

        What a worker shares becomes less with time: it has at least as much of its own.
        """
        return {
            row.age: self._board.note_resident(row.number, resident)
            for row in rows
            if row.memory and (resident := resident_memory(row.pid))
        }


def _known(snapshot: Snapshot, found: dict[int, WorkerMemory]) -> Snapshot:
    rows = (row._replace(memory=found.get(row.age, row.memory)) for row in snapshot.workers)
    return replace(snapshot, workers=tuple(rows))


def _sample_age(row: WorkerStats) -> float:
    return row.memory.age_seconds if row.memory else float("inf")


def _is_cold(row: WorkerStats) -> bool:
    return row.memory is None or row.memory.warm_bytes is None


def _is_new(row: WorkerStats) -> bool:
    return row.memory is None or (_is_cold(row) and row.served >= guard.WARM_REQUESTS)


def _has_served(row: WorkerStats) -> bool:
    return row.memory is not None and row.served != row.memory.served


class GuardTask(Task):
    """Enters how near memory is to its limit and, if it has rules, keeps it below that."""

    def __init__(
        self,
        board: Scoreboard,
        remedy: Remedy,
        rules: Rules | None,
        scaler: Scaler,
        gauge: MemoryGauge,
    ) -> None:
        self._board = board
        self._remedy = remedy
        self._is_alone = remedy.is_alone
        self._rules = rules
        self._scaler = scaler
        self._gauge = gauge
        self.sampling = SamplingTask(board)
        # Recycling, which may happen often, does not make it forget how growing back went.
        self._recent: deque[Done] = deque(maxlen=32)
        self._changes: deque[Done] = deque(maxlen=200)
        self._acted_at = float("-inf")
        self._usage: deque[tuple[float, MemoryState]] = deque(maxlen=64)
        self._oom_kills = board.workers_oom_killed
        self._oom_kill_at: float | None = None
        self._is_free: bool | None = None
        self._since = float("-inf")
        self._holders, self._holders_due = NO_HOLDERS, float("-inf")
        self._peaks_due, self._used_at_peaks = float("-inf"), 0
        self._surges = Surges()
        self._said: dict[tuple[Kind, str], float] = {}
        self.interval = SELDOM_SECONDS
        if rules:
            board.guard = GuardState.OK
        if board.stand_ins:
            # The monitor before this one has begun it.
            self._recent.append(Done(float("-inf"), Action(Kind.REPLACE)))

    def run(self, now: float, look: Look) -> None:
        """Observe, decide, act."""
        state = self._gauge.read()
        self._board.note_usage(state.limit_bytes, state.used_bytes)
        if self._board.state >= State.DRAINING:
            self.interval = SELDOM_SECONDS
            return
        if self._rules:
            self._guard(now, look, state, self._rules)
        self._scaler.reconcile(look)

    def _guard(self, now: float, look: Look, state: MemoryState, rules: Rules) -> None:
        is_free = state.used_bytes < guard.short_share(state, rules) * state.limit_bytes
        if is_free is not self._is_free:
            self._is_free, self._since = is_free, now
        if self._board.workers_oom_killed > self._oom_kills:
            self._oom_kills, self._oom_kill_at = self._board.workers_oom_killed, now
        growth = self._growth(now, state)
        is_pressing = guard.is_short(state, growth, rules)
        self.interval = self._pace(now, state, rules, is_pressing)
        is_measured = is_pressing or rules.worker_max_bytes is not None or self._board.removed > 0
        action = guard.NOTHING
        # Of a group the peaks of all workers count at any time.
        if state.is_group or is_measured or self._board.stand_ins or self._oom_kill_at is not None:
            snapshot = look()
            if self._is_alone and is_pressing:
                new = [row for row in snapshot.ready if row.memory is None]
                snapshot = _known(snapshot, self.sampling.measure(new))
            if self._has_moved(now, state):
                snapshot = self._with_peaks(now, snapshot, state)
            elif is_measured:
                snapshot = _known(snapshot, self.sampling.estimate(snapshot.workers))
                snapshot = self._with_surges(now, snapshot, state)
            seen = self._observe(now, snapshot, state, growth)
            decide = guard.decide_alone if self._is_alone else guard.decide
            action = decide(seen, rules)
            is_guess = action.kind is Kind.WARN and now >= self._holders_due
            if action.kind in (*_DEEDS, Kind.EXIT) or is_guess:
                is_choice = action.kind not in (Kind.FEWER, Kind.MORE)
                seen = self._observe_closely(now, growth, is_choice)
                action = decide(seen, rules)
            if action.answers_kill:
                self._oom_kill_at = None
            if action.kind is not Kind.NOTHING and self._act(now, action, seen, rules):
                self._log(now, action, seen, rules)
        self._show(now, action)

    def _has_moved(self, now: float, state: MemoryState) -> bool:
        """Return whether so much was taken or given back that workers may have a new peak."""
        moved = abs(state.used_bytes - self._used_at_peaks)
        # What was seen of a peak while it rose is followed by the rest of it.
        is_due = now >= self._peaks_due or now < self._acted_at + PEAK_RISES_SECONDS
        return state.is_group and is_due and moved >= guard.LEAST_GAIN * state.limit_bytes

    def _with_peaks(self, now: float, snapshot: Snapshot, state: MemoryState) -> Snapshot:
        begun = time.thread_time()
        snapshot = _known(snapshot, self.sampling.estimate_peaks(snapshot.workers))
        snapshot = self._with_surges(now, snapshot, state)
        self._used_at_peaks = state.used_bytes
        self._peaks_due = now + (time.thread_time() - begun) / PEAKS_SHARE
        return snapshot

    def _with_surges(self, now: float, snapshot: Snapshot, state: MemoryState) -> Snapshot:
        """Add what running requests have taken; a server of one process has nothing to choose."""
        if self._is_alone or not state.is_group:
            return snapshot
        took = self._surges.look(now, snapshot.workers, state.limit_bytes)
        surging = [row for row in snapshot.workers if row.age in took]
        found = {row.age: self._board.note_surge(row.number, took[row.age]) for row in surging}
        return _known(snapshot, found)

    def _observe_closely(self, now: float, growth: float, is_choice: bool) -> Observation:
        """Observe what to act on: the snapshot may be a moment old, and estimates too rough.

        To choose a worker; how many there can be is urgent, and shows without.
        """
        snapshot = self._board.read()
        if snapshot.is_leaving:
            snapshot = replace(snapshot, workers=())
        snapshot = _known(snapshot, self.sampling.estimate_peaks(snapshot.workers))
        # Both at the same moment, since what is used and not the workers' is others'.
        state = self._gauge.read()
        if is_choice:
            largest = self._observe(now, snapshot, state, growth).ready[:CANDIDATES]
            snapshot = _known(snapshot, self.sampling.measure(largest))
        snapshot = self._with_surges(now, snapshot, state)
        if now >= self._holders_due:
            begun = time.thread_time()
            self._holders = self._gauge.holders(state, [row.pid for row in snapshot.workers])
            cost = time.thread_time() - begun
            self._holders_due = now + max(cost / HOLDERS_SHARE, HOLDERS_SECONDS)
        return self._observe(now, snapshot, state, growth)

    def _pace(self, now: float, state: MemoryState, rules: Rules, is_pressing: bool) -> float:
        if (is_pressing or self._board.stand_ins) and now < self._acted_at + ACTING_SECONDS:
            return VERY_OFTEN_SECONDS
        longest = SELDOM_SECONDS if rules.worker_max_bytes is None else SOON_SECONDS
        if not state.is_group:
            return longest
        free = guard.critical_share(state) * state.limit_bytes - state.used_bytes
        return min(max(free / FASTEST_BYTES, OFTEN_SECONDS), longest)

    def _growth(self, now: float, state: MemoryState) -> float:
        """Return by how many bytes memory has grown in a second, lately."""
        if self._usage:
            before = self._usage[-1][1]
            if (before.limit_bytes, before.is_group) != (state.limit_bytes, state.is_group):
                # Another limit, or another group that is fullest now: no growth.
                self._usage.clear()
        self._usage.append((now, state))
        while now - self._usage[0][0] > GROWTH_SECONDS and len(self._usage) > 2:
            self._usage.popleft()
        begun, before = self._usage[0]
        return (state.used_bytes - before.used_bytes) / max(now - begun, GROWTH_SECONDS)

    def _observe(
        self, now: float, snapshot: Snapshot, state: MemoryState, growth: float
    ) -> Observation:
        self._remedy.note(now, snapshot.workers)
        return Observation(
            now=now,
            memory=state,
            planned=self._board.fitting,
            wanted=snapshot.wanted,
            workers=snapshot.workers,
            peak_bytes=self._remedy.peak_bytes,
            needed_bytes=self._remedy.needed_bytes,
            oom_kill_at=self._oom_kill_at,
            recent=tuple(sorted([*self._recent, *self._changes], key=lambda done: done.at)),
            since=self._since,
            growth_bytes=growth,
            holders=self._holders if now < self._holders_due else NO_HOLDERS,
        )

    def _act(self, now: float, action: Action, seen: Observation, rules: Rules) -> bool:
        """Do it, and return whether that was possible."""
        kind, worker = action.kind, action.worker
        if kind is Kind.RECYCLE and not (worker and self._scaler.recycle(worker)):
            return False
        if kind in _STEPS:
            stand_ins, removed = _STEPS[kind]
            leaving = self._scaler.choose(seen.workers, action.count) if removed > 0 else []
            self._board.stand_ins += stand_ins
            self._board.removed += removed * action.count
            self._scaler.release(leaving)
            self._scaler.scale()
        if kind is Kind.EXIT and rules.exits and not self._board.is_exit_asked:
            self._board.is_exit_asked = True
            self._scaler.end_server()
        if kind in _DEEDS:
            self._acted_at = now
            is_change = kind in (Kind.FEWER, Kind.MORE)
            (self._changes if is_change else self._recent).append(Done(now, action))
        if kind in (Kind.FEWER, Kind.FINISH, Kind.MORE):
            self._oom_kill_at = None
        return True

    def _log(self, now: float, action: Action, seen: Observation, rules: Rules) -> None:
        """Log what was done and why: at once, and then the same not too often."""
        kind, reason = action.kind, action.reason
        # Figures and names change at each look; who holds most, or why, is another line.
        gist = (kind, re.sub(r"[(:].*|\d+", "", reason))
        is_due = now >= self._said.get(gist, float("-inf")) + LOG_SECONDS
        if not is_due or kind is Kind.FINISH:
            return
        self._said[gist] = now
        used = f"{round(seen.used_bytes / MB)} of {round(seen.limit_bytes / MB)} MB in use"
        pid = action.worker.pid if action.worker else 0
        leaving = "stopping the server" if rules.exits else "/ready fails now"
        line = {
            Kind.RECYCLE: f"recycling worker {pid} ({reason}); {used}",
            Kind.REPLACE: f"starting a worker to replace {pid} ({reason}); {used}",
            Kind.FEWER: f"removing {_workers(action.count)}; {used}. {reason}",
            Kind.MORE: f"adding a worker ({reason}); {used}",
            Kind.WARN: f"{used}. {reason}",
            Kind.EXIT: f"{leaving}; {used}. {reason}",
        }[kind]
        level = logging.INFO if kind in _USUAL else logging.WARNING
        say(level, f"memory: {line}.{self._advice(action, seen, rules)}")

    def _advice(self, action: Action, seen: Observation, rules: Rules) -> str:
        """Return what to set if the plan is too large."""
        kind = action.kind
        if kind is Kind.EXIT and not rules.exits:
            remedy = "NOW_LMS_MEMORY_GUARD=exit has the service manager restart it in time."
            return f" Give it more memory, or find what grows. {remedy}"
        is_plan = kind is Kind.FEWER or (kind is Kind.WARN and action.worker is not None)
        if not is_plan or not seen.memory.is_group or self._is_alone:
            return ""
        return " " + self._remedy.advise(seen.now, seen.limit_bytes, seen.others_bytes)

    def _show(self, now: float, action: Action) -> None:
        """Enter the state of the guard in the scoreboard."""
        recycled = (Kind.RECYCLE, Kind.REPLACE)
        lately = [done for done in self._recent if now - done.at < LATELY_SECONDS]
        state = GuardState.REDUCED if self._board.removed else GuardState.OK
        if state is GuardState.OK and any(done.action.kind in recycled for done in lately):
            state = GuardState.RECYCLING
        at_worst = {Kind.EXIT: GuardState.CRITICAL, Kind.WARN: GuardState.WARN}
        self._board.guard = at_worst.get(action.kind, state)


def _workers(count: int) -> str:
    return "a worker" if count == 1 else f"{count} workers"


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
