"""Memory, one way through: sample, observe, decide, act, log.

Cheap figures are read often, costly ones seldom: what the control group uses at every turn, the
resident memory of each worker only while memory is short, and what is private to a worker (which
the kernel counts page by page) of one worker after the other, and to choose among the largest.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from dataclasses import dataclass, replace

from ..resources.gauge import MemoryGauge, MemoryState
from ..resources.holders import NO_HOLDERS
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import GuardState, Snapshot, State
from ..sizing.plan import MB
from . import guard
from .loop import Look, Task
from .observation import (
    LEAST_GAIN,
    NOTHING,
    Action,
    Done,
    History,
    Kind,
    Observation,
    Rules,
    critical_share,
    is_short,
    short_share,
)
from .remedy import Remedy
from .sampling import OFTEN_SECONDS, SELDOM_SECONDS, SamplingTask, known
from .scaling import Scaler
from .surge import Surges

FASTEST_BYTES = 3 * 1024 * MB
"""Memory that is taken in a second at the most, seen with five workers of 60 MB each: so long what
is free lasts."""

VERY_OFTEN_SECONDS = 0.01
"""How often while it acts: what was started is followed by the next step at once."""

ACTING_SECONDS = 5.0
"""How long after an action it counts as acting."""

SOON_SECONDS = 0.25
"""How often while workers have a bound of their own."""

GROWTH_SECONDS = 0.4
"""Time over which growth is measured: a single burst is no trend."""

CANDIDATES = 4
"""Workers that are measured to choose one: those with most memory."""

PEAK_RISES_SECONDS = 0.5
"""How long after an action peaks are read however often that is."""

LOG_SECONDS = 60.0
"""How often the same line is logged."""

HOLDERS_SECONDS = 2.0
"""How long a reading of other holders of memory stays valid at least."""

HOLDERS_SHARE = 0.0025
"""Share of a CPU that a reading may take for a warning: it reads all processes of the group."""

LOOK_SECONDS = 0.006
"""Time between two readings of the workers, for each of them, without a recent action: one takes
some 30 µs a worker, and so half a percent of a CPU."""

LATELY_SECONDS = 30.0
"""How long a recycling shows in the state of the guard."""


@dataclass(frozen=True)
class _Turn:
    """What is known before the workers are measured."""

    now: float
    state: MemoryState
    growth: float
    is_pressing: bool
    is_measured: bool
    """Whether what each worker holds now counts."""

    @property
    def stage(self) -> int:
        """How far it has come: 0 if memory is not short, 2 near the end."""
        critical = critical_share(self.state) * self.state.limit_bytes
        return self.is_pressing + (self.state.used_bytes >= critical)


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
        self._history = _history_of(board)
        self._acted_at = float("-inf")
        self._usage: deque[tuple[float, MemoryState]] = deque(maxlen=64)
        # A kill that the previous monitor did not handle still needs an answer.
        self._oom_kills = board.oom_answered
        self._oom_kill_at: float | None = None
        self._is_free: bool | None = None
        self._since = float("-inf")
        self._holders, self._holders_due = NO_HOLDERS, float("-inf")
        self._holders_at = float("-inf")
        self._look_due, self._used_at_peaks = float("-inf"), 0
        self._before: _Turn | None = None
        self._surges = Surges()
        self._said: dict[tuple[Kind, str], float] = {}
        self.interval = SELDOM_SECONDS
        if rules:
            board.guard = GuardState.OK

    @property
    def is_short(self) -> bool:
        """Whether memory was short at the last check."""
        return self._is_free is False

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
        is_free = state.used_bytes < short_share(state, rules) * state.limit_bytes
        if is_free is not self._is_free:
            self._is_free, self._since = is_free, now
        if self._board.workers_oom_killed > self._oom_kills:
            self._oom_kills, self._oom_kill_at = self._board.workers_oom_killed, now
        growth = self._growth(now, state)
        is_pressing = is_short(state, growth, rules)
        self.interval = self._pace(now, state, rules, is_pressing)
        is_measured = is_pressing or rules.worker_max_bytes is not None or self._board.removed > 0
        turn = _Turn(now, state, growth, is_pressing, is_measured)
        has_begun = self._board.stand_ins > 0 or self._oom_kill_at is not None
        # Of a group the peaks of all workers count at any time.
        if not (is_measured or has_begun or state.is_group):
            self._show(now, NOTHING)
        elif has_begun or self._is_due(turn):
            is_done = self._look_closer(turn, look, rules)
            pause = min(LOOK_SECONDS * self._board.wanted, SELDOM_SECONDS)
            self._look_due = now + pause if is_done else now
            self._before = turn
        elif self._before and turn.stage < self._before.stage:
            # The problem is gone: no need to measure the workers to know that.
            self._show(now, NOTHING)

    def _is_due(self, turn: _Turn) -> bool:
        """Return whether to measure the workers: without a change the result is the same."""
        now, before = turn.now, self._before
        if before is None or turn.stage > before.stage:
            return True
        if now < self._look_due:
            return now < self._acted_at + ACTING_SECONDS
        is_idle = not turn.is_measured and now < before.now + SELDOM_SECONDS
        return not is_idle or self._has_moved(turn.state)

    def _look_closer(self, turn: _Turn, look: Look, rules: Rules) -> bool:
        """Observe the workers, decide, act; return whether that was possible."""
        now, state, growth = turn.now, turn.state, turn.growth
        snapshot = look()
        if self._is_alone and turn.is_pressing:
            new = [row for row in snapshot.ready if row.memory is None]
            snapshot = known(snapshot, self.sampling.measure(new))
        # After a part of a rising peak was measured, the rest follows.
        is_due = now >= self._look_due or now < self._acted_at + PEAK_RISES_SECONDS
        if is_due and self._has_moved(state):
            snapshot = known(snapshot, self.sampling.estimate_peaks(snapshot.workers))
            snapshot = self._with_surges(now, snapshot, state)
            self._used_at_peaks = state.used_bytes
        elif turn.is_measured:
            snapshot = known(snapshot, self.sampling.estimate(snapshot.workers))
            snapshot = self._with_surges(now, snapshot, state)
        seen = self._observe(now, snapshot, state, growth)
        decide = guard.decide_alone if self._is_alone else guard.decide
        action = decide(seen, rules)
        is_deed = action.kind in (*_DEEDS, Kind.EXIT)
        if is_deed or (action.kind is Kind.WARN and now >= self._holders_due):
            if is_deed:
                # A reading that is good enough for a warning may be too old to act on.
                self._holders_due = min(self._holders_due, self._holders_at + HOLDERS_SECONDS)
            is_choice = action.kind not in (Kind.FEWER, Kind.MORE)
            seen = self._observe_closely(now, growth, is_choice)
            action = decide(seen, rules)
        if action.answers_kill:
            self._board.oom_answered, self._oom_kill_at = self._oom_kills, None
        is_done = action.kind is Kind.NOTHING or self._act(now, action, seen, rules)
        if is_done and action.kind is not Kind.NOTHING:
            self._log(now, action, seen, rules)
        self._show(now, action)
        return is_done

    def _has_moved(self, state: MemoryState) -> bool:
        """Return whether so much was taken or given back that workers may have a new peak."""
        moved = abs(state.used_bytes - self._used_at_peaks)
        return state.is_group and moved >= LEAST_GAIN * state.limit_bytes

    def _with_surges(self, now: float, snapshot: Snapshot, state: MemoryState) -> Snapshot:
        """Add what running requests have taken; a server of one process has nothing to choose."""
        if self._is_alone or not state.is_group:
            return snapshot
        took = self._surges.look(now, snapshot.workers, state.limit_bytes)
        surging = [row for row in snapshot.workers if row.age in took]
        found = {row.age: self._board.note_surge(row.number, took[row.age]) for row in surging}
        return known(snapshot, found)

    def _observe_closely(self, now: float, growth: float, is_choice: bool) -> Observation:
        """Observe what to act on: the snapshot may be a moment old, and estimates too rough.

        To choose a worker; how many there can be is urgent, and shows without.
        """
        begun = time.thread_time()
        snapshot = self._board.read()
        if snapshot.is_leaving:
            snapshot = replace(snapshot, workers=())
        snapshot = known(snapshot, self.sampling.estimate_peaks(snapshot.workers))
        # Both at the same moment: used memory that is not the workers' counts as others'.
        state = self._gauge.read()
        if is_choice:
            largest = self._observe(now, snapshot, state, growth).ready[:CANDIDATES]
            snapshot = known(snapshot, self.sampling.measure(largest))
        snapshot = self._with_surges(now, snapshot, state)
        if now >= self._holders_due:
            self._holders = self._gauge.holders(state, [row.pid for row in snapshot.workers])
            self._holders_at = now
            cost = time.thread_time() - begun
            self._holders_due = now + max(cost / HOLDERS_SHARE, HOLDERS_SECONDS)
        return self._observe(now, snapshot, state, growth)

    def _pace(self, now: float, state: MemoryState, rules: Rules, is_pressing: bool) -> float:
        if (is_pressing or self._board.stand_ins) and now < self._acted_at + ACTING_SECONDS:
            return VERY_OFTEN_SECONDS
        longest = SELDOM_SECONDS if rules.worker_max_bytes is None else SOON_SECONDS
        if not state.is_group:
            return longest
        free = critical_share(state) * state.limit_bytes - state.used_bytes
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
            history=self._history,
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
            history = self._history = self._history.after(now, action)
            self._board.added_at, self._board.removed_at = history.added_at, history.removed_at
            self._board.added_in_vain = history.added_in_vain
        return True

    def _log(self, now: float, action: Action, seen: Observation, rules: Rules) -> None:
        """Log what was done and why; the same line at most once in a while."""
        kind, reason = action.kind, action.reason
        # Figures and names change each time; another holder or reason makes another line.
        gist = (kind, re.sub(r"[(:].*|\d+", "", reason))
        is_due = now >= self._said.get(gist, float("-inf")) + LOG_SECONDS
        if not is_due or kind is Kind.FINISH:
            return
        self._said[gist] = now
        used = f"{round(seen.used_bytes / MB)} of {round(seen.limit_bytes / MB)} MB in use"
        pid = action.worker.pid if action.worker else 0
        leaving = "stopping the server" if rules.exits else "/ready fails now"
        advice = self._advice(action, seen, rules)

        def line(worker: str, other: str, reason: str) -> str:
            what = {
                Kind.RECYCLE: f"recycling {worker} ({reason}); {used}",
                Kind.REPLACE: f"starting a worker to replace {other} ({reason}); {used}",
                Kind.FEWER: f"removing {_workers(action.count)}; {used}. {reason}",
                Kind.MORE: f"adding a worker ({reason}); {used}",
                Kind.WARN: f"{used}. {reason}",
                Kind.EXIT: f"{leaving}; {used}. {reason}",
            }[kind]
            return f"memory: {what}.{advice}"

        # Readers of events need not know the names of other processes.
        event = line("a worker", "another", reason.partition(" (such as ")[0])
        level = logging.INFO if kind in _USUAL else logging.WARNING
        self._board.events.tell(level, line(f"worker {pid}", str(pid), reason), event)

    def _advice(self, action: Action, seen: Observation, rules: Rules) -> str:
        """Return what to set if the plan is too large."""
        kind = action.kind
        if kind is Kind.EXIT and not rules.exits:
            remedy = "With NOW_LMS_MEMORY_GUARD=exit the service manager restarts it in time."
            return f" Give it more memory, or find what grows. {remedy}"
        is_plan = kind is Kind.FEWER or (kind is Kind.WARN and action.worker is not None)
        if not is_plan or not seen.memory.is_group or self._is_alone:
            return ""
        return " " + self._remedy.advise(seen.now, seen.limit_bytes, seen.others_bytes)

    def _show(self, now: float, action: Action) -> None:
        """Enter the state of the guard in the scoreboard."""
        state = GuardState.REDUCED if self._board.removed else GuardState.OK
        if state is GuardState.OK and now - self._history.recycled_at < LATELY_SECONDS:
            state = GuardState.RECYCLING
        at_worst = {Kind.EXIT: GuardState.CRITICAL, Kind.WARN: GuardState.WARN}
        self._board.guard = at_worst.get(action.kind, state)


def _history_of(board: Scoreboard) -> History:
    """Return the previous monitor's actions, as far as they count."""
    is_replacing = board.stand_ins > 0
    return History(
        last=Done(float("-inf"), Action(Kind.REPLACE)) if is_replacing else None,
        removed_at=board.removed_at,
        added_at=board.added_at,
        added_in_vain=board.added_in_vain,
    )


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
