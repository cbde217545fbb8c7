"""How many workers and slots the load needs: a pure function from a sample to a move.

A slot is a request that a worker runs at once. The order of the questions is the policy:

1. Does the memory guard act? Then do nothing: the guard comes first.
2. Is the result of the last step known? If it did not help, or cost throughput, undo it, and
   wait before the next one of its kind.
3. Is the load steady, and was the last move less than a minute ago? Then do nothing.
4. Do requests wait, and is CPU left? Then more slots, up to what the app was measured to need:
   CPUs × (1 + waiting / computing), see :mod:`flask_workersize.sizing.advice`. If that is not
   known, or not enough: as many times more as CPU is left, at most twice as many. A worker that
   uses one core has none left, whatever others have: then one more worker.
5. Are the CPUs full? Then more slots only make each request slower: remove them.

A step that memory does not allow is not taken. This rule never removes workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..sizing.advice import SPARE, SPARE_WORKERS, WAITING_SHARE

FULL = 0.95
"""Share of the CPUs, or of the slots, from which they are full, and below which some are left: a
quota is never used to the last percent. A step that this allows in error is taken back."""

CROWDED = 0.5
"""Share of a core from which a worker should have another beside it: a request that wants to
compute finds one that does, in one of two cases."""

NOISE = 0.05
"""Change of throughput that a step has to exceed to count: what the same server differs by from
one run to the next."""

CHANGE = 1.25
"""Times by which throughput, or CPU time for a request, differs when the load has changed: five
times what the mean of two seconds differs by if each is 10 % off."""

CHANCE = 4.0
"""Standard deviations of a number of requests that come by chance (the root of that number) by
which it may differ, and the load is the same."""

OTHER_APP = 1.4
"""Times by which CPU time for a request differs if the app does other work, where the slots differ,
too: threads that want to compute cost each other some."""

LEAST_ALONE = 20
"""How many requests have to have run alone before the app's needs count as measured."""

FADING = 0.8
"""Weight that earlier requests keep after one second: about the last five seconds count."""

LEAST_WAIT_SECONDS = 0.005
"""A shorter wait is a thread switch of Python (``sys.getswitchinterval``), not a queue."""

WAITS_SHARE = 0.1
"""Waiting, as a share of the time that a request runs, from which it counts."""

STEADY_SECONDS = 30.0
"""How long the load has to stay the same to count as steady."""

PACE_SECONDS = 60.0
"""Time between two moves under a steady load; undoing a step belongs to the same move."""

PATIENCE_SECONDS = 120.0
"""Time between a step that did not help and the next of its kind, if the load does not change;
doubles each time, up to an hour. Two minutes for two moves: one a minute."""

LONGEST_PATIENCE_SECONDS = 3600.0

LEAST_SAMPLES = 2
"""Samples before a step, and before it is judged if what it brings is clear: three times noise."""

MORE_SAMPLES = 4
"""Samples if it is not: half the noise of one."""

ENOUGH_DONE = 20
"""Requests before a step is judged, or so many seconds as a steady load takes."""


@dataclass(frozen=True)
class AdaptingRules:
    """What bounds the moves."""

    cpus: float
    """CPUs, limited by a quota if there is one."""

    most_workers: int
    most_slots: int
    """Per worker: 64, or fewer if a database pool has fewer connections."""

    follows_workers: bool = True
    follows_slots: bool = True
    may_exceed_core: bool = False
    """Whether a worker can compute on more than one CPU, as Python without the GIL does."""


@dataclass(frozen=True)
class Alone:
    """Requests that ran alone in their process; parallel ones also wait for the GIL.

    ``wait_seconds`` is without the time that they waited for a CPU.
    """

    count: float = 0.0
    cpu_seconds: float = 0.0
    wait_seconds: float = 0.0


@dataclass(frozen=True)
class Sample:
    """Measurements of about one second; ``now`` is its end, by a monotonic clock."""

    now: float
    seconds: float
    workers: int
    """Workers that are ready."""

    wanted: int
    """Target number of workers."""

    slots: int
    """Slots of each worker."""

    done: int
    """Requests that ended."""

    cpu_seconds: float
    """CPU time of those, by the clock that ``alone`` is measured with."""

    busy: float
    """Average number of requests that ran at once."""

    waited_seconds: float | None
    """Mean time that requests waited before they began, here or since a trusted proxy received
    them; ``None`` if unknown."""

    cpu_of_group: float
    """Share of the CPUs that was used, of what others left of them: 0 to 1."""

    cpu_of_processes: Sequence[float]
    """What each ready worker used, as a share of one core."""

    alone: Alone
    memory_free_bytes: float
    """Memory left before the guard acts, with all workers at their peak at once."""

    worker_need_bytes: float | None
    """Most memory a worker needs, including its threads; ``None`` before it was measured."""

    thread_need_bytes: float
    """Memory that one more slot in a worker needs, with its request."""

    guard_acts: bool
    """Whether the guard recycles or has removed workers, or memory is short."""


@dataclass(frozen=True)
class Move:
    """The new target size, and the reason."""

    workers: int
    slots: int
    reason: str


@dataclass(frozen=True)
class Step:
    """Other slots than before, until it is known what they bring; ``before`` is the mean then."""

    slots_before: int
    slots: int
    before: Mean

    @property
    def is_up(self) -> bool:
        """Whether there are more than before."""
        return self.slots > self.slots_before


@dataclass(frozen=True)
class Block:
    """Until when a kind of step is blocked, and for how long the next failure will block it."""

    until: float = -math.inf
    seconds: float = PATIENCE_SECONDS

    def renewed(self, now: float) -> Block:
        """Return the block after one more step that did not help."""
        return Block(now + self.seconds, min(2 * self.seconds, LONGEST_PATIENCE_SECONDS))


@dataclass(frozen=True)
class State:
    """State kept from one sample to the next; it begins as ``State()``."""

    window: tuple[Sample, ...] = ()
    """Samples of the same shape and the same load, the latest last."""

    alone: Alone = Alone()
    step: Step | None = None
    """The last step, while it is not judged."""

    load: Mean | None = None
    """The load when the last move was made."""

    kept_up: bool | None = None
    """Whether the last step that was not in vain was to more slots; ``None`` if there was none."""

    kept_up_at: float = -math.inf
    """When more slots last were not in vain."""

    moved_at: float = -math.inf
    changed_at: float | None = None
    """When the load changed; ``None`` before the first sample."""

    up: Block = Block()
    down: Block = Block()
    exceeds_core: bool = False
    """Whether a worker was seen to use more than one core."""


@dataclass(frozen=True)
class Mean:
    """Samples together."""

    seconds: float
    done: int
    rate: float
    cost: float
    """CPU seconds of a request."""

    busy: float
    group: float
    process: float
    waited: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Mean:
        """Return the mean of samples, of which there is at least one."""
        seconds = sum(one.seconds for one in samples)
        done = sum(one.done for one in samples)

        def mean(values: Sequence[float]) -> float:
            return sum(values) / len(values)

        return cls(
            seconds=seconds,
            done=done,
            rate=done / seconds,
            cost=sum(one.cpu_seconds for one in samples) / max(done, 1),
            busy=mean([one.busy for one in samples]),
            group=mean([one.cpu_of_group for one in samples]),
            process=mean([mean(one.cpu_of_processes or (0.0,)) for one in samples]),
            waited=mean([one.waited_seconds or 0 for one in samples]),
        )

    @property
    def ran_seconds(self) -> float:
        """How long a request runs (Little's law)."""
        return self.busy / self.rate if self.rate else math.inf

    @property
    def answer_seconds(self) -> float:
        """How long a request waits and runs."""
        return self.waited + self.ran_seconds

    def differs(self, before: Mean) -> bool:
        """Return whether this is another load, by more than so few requests differ by chance."""
        expected = before.rate * self.seconds
        is_chance = abs(self.done - expected) <= CHANCE * math.sqrt(max(expected, 1.0))
        is_other = _differ(self.rate, before.rate, CHANGE) and not is_chance
        return is_other or self.costs_other(before, CHANGE)

    def used(self, exceeds_core: bool) -> float:
        """Return the share of what the workers could use: of the CPUs, or of a core each."""
        return max(self.group, 0.0 if exceeds_core else self.process)

    def costs_other(self, before: Mean, times: float) -> bool:
        """Return whether these requests take another CPU time than those before."""
        is_known = min(self.done, before.done) >= ENOUGH_DONE
        return is_known and _differ(self.cost, before.cost, times)


def _differ(one: float, other: float, times: float) -> bool:
    return max(one, other) > times * min(one, other)


def adapt(rules: AdaptingRules, state: State, seen: Sample) -> tuple[State, Move | None]:
    """Decide on the size; call it once a second, with the state it returned before.

    :param rules: what bounds the moves
    :param state: what the last call returned, or ``State()``
    :param seen: measurements since the last call
    :returns: the state for the next call, and the move, if there is one
    """
    if seen.guard_acts:
        return replace(state, window=(), step=None), None
    state = _noted(state, seen)
    window = state.window
    # One that differs: the next sample shows whether that is another load.
    if len(window) < LEAST_SAMPLES or Mean.of(window[-1:]).differs(Mean.of(window[:-1])):
        return state, None
    if state.step is not None:
        return _judged(rules, state, state.step, seen)
    is_steady = seen.now - (state.changed_at or 0.0) >= STEADY_SECONDS
    if is_steady and seen.now < state.moved_at + PACE_SECONDS:
        return state, None
    mean = Mean.of(window[-MORE_SAMPLES:])
    move = _next(rules, state, seen, mean)
    if move is None:
        return state, None
    if move.slots != seen.slots:
        step = Step(seen.slots, move.slots, mean)
        turns_back = state.kept_up is (not step.is_up)
        state = replace(_blocked(state, step, seen) if turns_back else state, step=step)
    return _moved(state, seen), move


def _judged(
    rules: AdaptingRules, state: State, step: Step, seen: Sample
) -> tuple[State, Move | None]:
    """Keep or undo the last step, once its result is known."""
    mean = Mean.of(state.window)
    if not _can_judge(step, state.window, mean):
        return state, None
    if reason := _in_vain(step, mean, mean.used(_exceeds_core(rules, state))):
        # If it was too few, the app was thought to need less than it does.
        alone = state.alone if step.is_up else Alone()
        state = replace(_blocked(state, step, seen), step=None, alone=alone)
        return _moved(state, seen), Move(seen.wanted, step.slots_before, reason)
    kept_up_at = seen.now if step.is_up else state.kept_up_at
    state = replace(state, step=None, kept_up=step.is_up, kept_up_at=kept_up_at)
    return state, None


def _exceeds_core(rules: AdaptingRules, state: State) -> bool:
    return rules.may_exceed_core or state.exceeds_core


def _blocked(state: State, step: Step, seen: Sample) -> State:
    """Block a kind of step: one that did not help, or one that reversed a step that did."""
    if step.is_up:
        return replace(state, up=state.up.renewed(seen.now))
    return replace(state, down=state.down.renewed(seen.now))


def _moved(state: State, seen: Sample) -> State:
    return replace(state, window=(), moved_at=seen.now, load=Mean.of(state.window))


def _noted(state: State, seen: Sample) -> State:
    """Return the state with a sample: it begins a new window if shape or load have changed."""
    kept = FADING**seen.seconds
    alone = Alone(
        state.alone.count * kept + seen.alone.count,
        state.alone.cpu_seconds * kept + seen.alone.cpu_seconds,
        state.alone.wait_seconds * kept + seen.alone.wait_seconds,
    )
    # Faded requests still describe the app until others run alone.
    state = replace(
        state,
        alone=alone if seen.alone.count else state.alone,
        changed_at=seen.now if state.changed_at is None else state.changed_at,
        exceeds_core=state.exceeds_core or max(seen.cpu_of_processes, default=0) > CHANGE,
    )
    ran = min(seen.busy * seen.seconds / seen.done if seen.done else 0.0, STEADY_SECONDS)
    if seen.now - seen.seconds < state.moved_at + ran:
        return state
    window = state.window
    if window and (window[-1].workers, window[-1].slots) != (seen.workers, seen.slots):
        window = ()
    window = (*window[-int(STEADY_SECONDS) :], seen)
    before, after = window[:-LEAST_SAMPLES], window[-LEAST_SAMPLES:]
    last, first = Mean.of(after), Mean.of(before) if len(before) >= MORE_SAMPLES else None
    # Our own move changes the rate, too, but not the cost of a request.
    is_other_app = (first is not None and last.costs_other(first, CHANGE)) or (
        state.load is not None and last.costs_other(state.load, OTHER_APP)
    )
    if not is_other_app and not (first and last.differs(first)):
        return replace(state, window=window)
    # Of the samples that showed it only the last is of the new load alone.
    return State(
        window=(seen,),
        alone=seen.alone if is_other_app else alone,
        moved_at=state.moved_at,
        changed_at=seen.now,
        exceeds_core=state.exceeds_core,
    )


def _can_judge(step: Step, window: Sequence[Sample], mean: Mean) -> bool:
    ratio = mean.rate / step.before.rate if step.before.rate else math.inf
    is_clear = ratio > 1 + 3 * NOISE if step.is_up else ratio < 1 - 3 * NOISE
    is_long = window[-1].now - window[0].now >= STEADY_SECONDS
    is_enough = len(window) >= MORE_SAMPLES or is_clear
    return is_enough and (mean.done >= ENOUGH_DONE or is_long)


def _in_vain(step: Step, mean: Mean, used: float) -> str | None:
    """Return why to undo a step; ``None`` to keep it."""
    before = step.before
    rates = f"{mean.rate:.0f} requests/s, {before.rate:.0f} before"
    if not step.is_up:
        # While the CPUs are full, fewer slots are not the cause of it.
        is_less = mean.rate < before.rate * (1 - NOISE)
        is_later = mean.answer_seconds > before.answer_seconds * (1 + NOISE)
        lost = used < FULL and (is_less or is_later)
        return f"fewer slots made it slower ({rates})" if lost else None
    is_earlier = mean.answer_seconds < before.answer_seconds * (1 - NOISE)
    if mean.rate > before.rate * (1 + NOISE) or is_earlier:
        return None
    return f"more slots did not help ({rates})"


def _next(rules: AdaptingRules, state: State, seen: Sample, mean: Mean) -> Move | None:
    """Return the next step, as far as memory allows it."""
    exceeds = _exceeds_core(rules, state)
    used, waits = mean.used(exceeds), _waits(seen, mean)
    waiting = _waiting_share(state, mean)
    goal = None
    if waiting is not None:
        cpus = rules.cpus if exceeds else min(rules.cpus, seen.workers)
        goal = _goal(rules, cpus, waiting, seen.workers)
    in_use = f"{mean.group:.0%} of the CPUs in use"
    why = f"requests wait, {in_use}"
    can_grow = used < FULL and waits and seen.now >= state.up.until
    moves = []
    if can_grow and goal is None:
        moves.append(_with_slots(rules, seen, _more(seen, used), why))
    if can_grow and waiting is not None and goal is not None and goal > CHANGE * seen.slots:
        # Workers that will be added need no extra slots here.
        slots = max(seen.slots, _goal(rules, rules.cpus, waiting, _reachable(rules, seen)))
        needs = f"the app waits {waiting:.1f} times as long as it computes"
        moves.append(_with_slots(rules, seen, slots, f"{why}; {needs}"))
    if _lacks_workers(rules, seen, mean, waits):
        moves.append(_with_worker(rules, seen, why if waits else f"workers are busy, {in_use}"))
    if can_grow and waiting is not None and 1 + waiting > WAITING_SHARE:
        moves.append(_with_slots(rules, seen, _more(seen, used), why))
    if seen.now >= state.down.until:
        moves.append(_fewer(rules, state, seen, mean, goal))
    return next((move for move in moves if move is not None), None)


def _lacks_workers(rules: AdaptingRules, seen: Sample, mean: Mean, waits: bool) -> bool:
    """Return whether one more worker may help.

    Beside threads, as in the advice, there are two for each CPU, even if the CPUs are full.
    """
    if mean.process >= CROWDED and seen.slots > 1 and seen.workers < 2 * math.ceil(rules.cpus):
        return True
    return mean.group < FULL and (waits or mean.process >= CROWDED)


def _fewer(
    rules: AdaptingRules, state: State, seen: Sample, mean: Mean, goal: int | None
) -> Move | None:
    """Return a step to fewer slots, if no CPU is left for so many."""
    in_use = f"{mean.group:.0%} of the CPUs in use"
    fewer = math.ceil(seen.slots / 2) if goal is None else goal
    had_more = seen.now < state.kept_up_at + PACE_SECONDS
    is_full = mean.used(_exceeds_core(rules, state)) >= FULL
    if not is_full or had_more or seen.slots <= CHANGE * fewer:
        return None
    return _with_slots(rules, seen, fewer, f"too many slots, {in_use}")


def _waits(seen: Sample, mean: Mean) -> bool:
    """Return whether requests wait: here, at a proxy, or, since all slots are busy, anywhere."""
    is_late = mean.waited >= max(LEAST_WAIT_SECONDS, WAITS_SHARE * mean.ran_seconds)
    return is_late or mean.busy >= FULL * seen.workers * seen.slots


def _waiting_share(state: State, mean: Mean) -> float | None:
    """Return waiting / computing; ``None`` if unknown, or measured with other requests."""
    alone = state.alone
    if alone.count < LEAST_ALONE or not alone.cpu_seconds or not mean.rate:
        return None
    is_other = _differ(mean.cost, alone.cpu_seconds / alone.count, OTHER_APP)
    return None if is_other else alone.wait_seconds / alone.cpu_seconds


def _goal(rules: AdaptingRules, cpus: float, waiting: float, reachable: int) -> int:
    """Return slots for each worker, as the advice after a measurement does.

    :param cpus: those that the workers can use
    :param waiting: waiting / computing
    :param reachable: workers that there can be
    """
    slots = cpus * (1 + waiting)
    if 1 + waiting <= WAITING_SHARE or slots * SPARE_WORKERS <= reachable:
        return 1
    return min(rules.most_slots, math.ceil(slots * SPARE / reachable))


def _more(seen: Sample, used: float) -> int:
    """Return as many times more slots as CPU is left, at most twice as many."""
    return math.ceil(seen.slots * min(2.0, 1 / max(used, 0.5)))


def _reachable(rules: AdaptingRules, seen: Sample) -> int:
    if not rules.follows_workers or not seen.worker_need_bytes:
        return seen.workers
    more = _as_many(seen.memory_free_bytes, seen.worker_need_bytes, rules.most_workers)
    return max(seen.workers, min(seen.workers + more, rules.most_workers))


def _with_worker(rules: AdaptingRules, seen: Sample, reason: str) -> Move | None:
    """Return a step to one more worker: one at a time, each measured before the next."""
    is_free = rules.follows_workers and seen.workers == seen.wanted < rules.most_workers
    need = seen.worker_need_bytes
    can = is_free and need is not None and need <= seen.memory_free_bytes
    return Move(seen.wanted + 1, seen.slots, reason) if can else None


def _with_slots(rules: AdaptingRules, seen: Sample, slots: int, reason: str) -> Move | None:
    """Return a step to so many slots, or as far as the bounds and memory allow."""
    each = seen.thread_need_bytes * seen.wanted
    more = _as_many(seen.memory_free_bytes, each, rules.most_slots)
    slots = min(slots, rules.most_slots, seen.slots + more)
    can = rules.follows_slots and slots != seen.slots
    return Move(seen.wanted, slots, reason) if can else None


def _as_many(free_bytes: float, each_bytes: float, most: int) -> int:
    """Return how many memory has room for: 0 to the most."""
    if most * each_bytes <= free_bytes:
        return most
    return max(0, int(free_bytes // each_bytes)) if each_bytes > 0 else 0
