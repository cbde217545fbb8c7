"""What to do about memory: a pure function from an observation to an action.

The order of the questions is the policy:

1. Is something under way? Wait: never two at once. (The kernel does not wait: after it has killed
   a worker, remove one.)
2. Is the successor of the last worker ready? Let the old one go.
3. Was the last action a moment ago? Wait.
4. Is a worker above its own bound? Recycle it.
5. Would memory not do if all workers were at their peak at the same time? Remove those that are too
   many, before the kernel kills.
6. Is memory short? Recycle the worker that has grown most since it was warm. If none has grown,
   that is no leak, and recycling does not help. If the workers explain the shortage, remove one
   before memory runs out, and log that the plan is too large; if something else holds the memory,
   removing workers does not help either: keep them, and log what holds it.
7. Has memory been free for a while, and are there fewer workers than planned? Add one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from ..resources.gauge import MemoryState
from ..resources.holders import NO_HOLDERS, Holders
from ..runtime.snapshot import WorkerStats
from ..sizing.plan import MB

PACE_SECONDS = 0.05
"""Shortest time between two actions: less than a worker takes to leave and another to come."""

HORIZON_SECONDS = 0.5
"""How far ahead growth is projected: some times what an action takes to have an effect."""

SURPLUS_SECONDS = 2.0
"""How far ahead, if several workers are removed at once: later ones would take longer to leave."""

LEAST_SHARE_TO_EXIT = 0.5
"""Share of what a machine's others leave that a server of one process has to have grown by before
it ends: a new start must give room for long."""

STUBBORN_SECONDS = 30.0
"""How long memory may stay short while workers are recycled, before that counts as ineffective."""

SLOW_PACE_SECONDS = 10.0
"""Time between two recyclings from then on."""

LEAST_GAIN = 0.02
"""Share of the limit that a recycled worker has to give back at least: less is noise."""

LEAST_GAIN_BESIDE_OTHERS = 0.1
"""The same on a machine, for all workers together, as a share of what its others leave."""

WARM_REQUESTS = 25
"""Requests after which a worker is warm: its caches are there, and what comes then is growth."""

CALM_SECONDS = 10.0
"""How long memory has to be free before a worker is added; doubles each time that this proves too
early, up to an hour."""

LONGEST_CALM_SECONDS = 3600.0

CRITICAL_SHARE = 0.9
"""Share of the limit above which workers are removed, and a server of one process is not ready.
Closer to the limit the kernel takes back pages of the programs themselves, and all slows down."""

TIGHT_SHARE = 0.8
"""The same where more is at stake than one worker: if the kernel kills all processes of the group
together (``memory.oom.group``), or puts them to sleep long before (``memory.high``)."""

SAFE_SHARE = 0.97
"""Share of the limit that a second worker, beside the last one, may bring us to."""


class Kind(StrEnum):
    """What can be done: ``REPLACE`` starts the successor of a last worker, ``FINISH`` lets that go.

    ``EXIT`` is for a server of one process, which nothing can replace.
    """

    NOTHING = "nothing"
    RECYCLE = "recycle"
    REPLACE = "replace"
    FINISH = "finish"
    FEWER = "fewer"
    MORE = "more"
    WARN = "warn"
    EXIT = "exit"


@dataclass(frozen=True)
class Action:
    """What to do, to which worker, and why; ``count`` workers at once."""

    kind: Kind
    worker: WorkerStats | None = None
    reason: str = ""
    count: int = 1
    answers_kill: bool = False
    """Whether this is about a worker that the kernel has killed."""


@dataclass(frozen=True)
class Done:
    """An action of the past, and when it was, in seconds of a monotonic clock."""

    at: float
    action: Action


@dataclass(frozen=True)
class Rules:
    """What the operator set."""

    recycle_share: float = 0.7
    """Share of the limit above which workers are recycled."""

    worker_max_bytes: int | None = None
    """Private memory above which a worker is recycled."""

    patience_seconds: float = 30.0
    """How long an action may be under way before it is given up."""

    exits: bool = False
    """Whether a server of one process is to end before the kernel ends it."""


@dataclass(frozen=True)
class Observation:
    """What is the case; times are those of a monotonic clock."""

    now: float
    memory: MemoryState
    planned: int
    wanted: int
    """Workers that there should be now."""

    workers: tuple[WorkerStats, ...]
    peak_bytes: int = 0
    """The most private memory that a worker was seen with, those that were killed included."""

    needed_bytes: int = 0
    """The most that a worker was seen to need without growing."""

    oom_kill_at: float | None = None
    """When the kernel last killed a worker."""

    recent: tuple[Done, ...] = ()
    """What was done, the latest last."""

    since: float = 0.0
    """When memory last went above the share from which workers are recycled, or below it."""

    growth_bytes: float = 0.0
    """How much more is used in a second."""

    holders: Holders = NO_HOLDERS
    """What else holds memory, as far as anybody has looked."""

    @property
    def limit_bytes(self) -> int:
        """The limit on memory."""
        return self.memory.limit_bytes

    @property
    def used_bytes(self) -> int:
        """What is used of it."""
        return self.memory.used_bytes

    @property
    def critical_bytes(self) -> float:
        """What may be used before workers are removed."""
        return critical_share(self.memory) * self.limit_bytes

    @property
    def held_by_others(self) -> Holders:
        """What else holds memory: no more than what is not private to workers."""
        return self.holders.within(self.others_bytes)

    @property
    def knows_sizes(self) -> bool:
        """Whether the system reports what is private to each worker, and each was measured."""
        return all(one.memory and one.memory.first_bytes is not None for one in self.workers)

    @property
    def least_gain_bytes(self) -> float:
        """What a recycled worker has to give back at least."""
        if self.memory.is_group:
            return LEAST_GAIN * self.limit_bytes
        return LEAST_GAIN_BESIDE_OTHERS * self.left_bytes / max(len(self.workers), 1)

    @property
    def left_bytes(self) -> int:
        """What others leave of the limit."""
        return max(self.limit_bytes - self.others_bytes, 0)

    @property
    def ready(self) -> list[WorkerStats]:
        """Workers that take requests and stay, the one with most memory first.

        Of more than are wanted the master lets the oldest go.
        """
        staying = [worker for worker in self.workers if not worker.is_leaving]
        staying.sort(key=lambda worker: worker.age)
        ready = [worker for worker in staying[-self.wanted :] if worker.is_ready]
        return sorted(ready, key=lambda worker: -worker.private_bytes)

    @property
    def others_bytes(self) -> int:
        """What is used, and not private to a worker."""
        return max(self.used_bytes - sum(worker.private_bytes for worker in self.workers), 0)


def critical_share(state: MemoryState) -> float:
    """Return the share of a limit above which workers are removed."""
    return TIGHT_SHARE if state.is_throttled or state.is_killed_together else CRITICAL_SHARE


def short_share(state: MemoryState, rules: Rules) -> float:
    """Return the share of a limit above which memory is short."""
    return min(rules.recycle_share, critical_share(state))


def is_short(state: MemoryState, growth_bytes: float, rules: Rules) -> bool:
    """Return whether something should be done, now or because of what is to come.

    It is where used is above the first share, or used + growth in a second × horizon above the
    critical one.
    """
    ahead = state.used_bytes + max(growth_bytes, 0.0) * HORIZON_SECONDS
    is_full = state.used_bytes >= short_share(state, rules) * state.limit_bytes
    return is_full or ahead >= critical_share(state) * state.limit_bytes


NOTHING = Action(Kind.NOTHING)


def decide(seen: Observation, rules: Rules) -> Action:
    """Decide what to do."""
    ready = seen.ready
    acted = [done for done in seen.recent if done.action.kind is not Kind.WARN]
    last = acted[-1] if acted else None
    has_stand_in = last is not None and last.action.kind is Kind.REPLACE
    if _was_killed(seen) and _can_spare(seen) and not has_stand_in:
        return _answer_kill(seen, last, rules)
    if not ready:
        return NOTHING
    if last and _is_under_way(seen, last, rules):
        return _even_fewer(seen, ready, last, rules)
    if has_stand_in:
        return _finish(seen, ready)
    if last and seen.now < last.at + PACE_SECONDS:
        return NOTHING
    return _steady(seen, ready, rules)


def _finish(seen: Observation, ready: list[WorkerStats]) -> Action:
    if len(ready) > 1 and _can_spare(seen):
        return Action(Kind.FINISH, None, "its successor is ready")
    return Action(Kind.WARN, ready[0], "The worker that is to take over is not ready")


def _steady(seen: Observation, ready: list[WorkerStats], rules: Rules) -> Action:
    largest, bound = ready[0], rules.worker_max_bytes
    if bound is not None and largest.private_bytes > bound:
        reason = f"has {_mb(largest.private_bytes)}, its bound is {_mb(bound)}"
        return _recycle(seen, largest, reason, rules)
    if too_large := _too_large_at_peak(seen, ready, rules):
        return too_large
    if is_short(seen.memory, seen.growth_bytes, rules):
        return _under_pressure(seen, ready, rules)
    return _one_more(seen)


def decide_alone(seen: Observation, rules: Rules) -> Action:
    """Decide for a server of one process, such as waitress, which nothing can replace.

    :returns: a warning above the first share, and ``EXIT`` above the critical one
    """
    is_measured = bool(seen.workers) and seen.workers[0].memory is not None
    if not is_measured or seen.used_bytes < short_share(seen.memory, rules) * seen.limit_bytes:
        return NOTHING
    worker, is_critical = seen.workers[0], seen.used_bytes >= seen.critical_bytes
    least = 0 if seen.memory.is_group else LEAST_SHARE_TO_EXIT * seen.left_bytes
    has_grown = worker.grown_bytes >= max(least, seen.least_gain_bytes)
    if has_grown and is_critical and _gives_room(seen, worker.grown_bytes, rules):
        return Action(Kind.EXIT, worker, f"This server holds {_mb(worker.private_bytes)}")
    if not _is_ours(seen, worker.grown_bytes, rules):
        return _blame_others(seen, f"this server has grown by {_mb(worker.grown_bytes)}")
    # One that needs so much to begin with would be as large after a new start.
    if not _explains(seen, seen.used_bytes, rules):
        return Action(Kind.WARN, None, _held_by(seen, "this server"))
    return Action(Kind.WARN, worker, f"This server holds {_mb(worker.private_bytes)}")


def _is_under_way(seen: Observation, last: Done, rules: Rules) -> bool:
    if seen.now > last.at + rules.patience_seconds:
        return False
    is_final = all(worker.is_ready and not worker.is_leaving for worker in seen.workers)
    return not is_final or len(seen.workers) != seen.wanted


def _is_ours(seen: Observation, grown_bytes: int, rules: Rules) -> bool:
    """Return whether memory is short because of this server: on a machine others may be it."""
    excess = seen.used_bytes - short_share(seen.memory, rules) * seen.limit_bytes
    return seen.memory.is_group or grown_bytes >= max(excess, 1)


def _blame_others(seen: Observation, ours: str) -> Action:
    """Warn of others shortly before the end: that a machine is well used is no news."""
    if seen.used_bytes < seen.critical_bytes:
        return NOTHING
    return Action(Kind.WARN, None, f"Other processes hold it: {ours}")


def _explains(seen: Observation, bytes_at_worst: float, rules: Rules) -> bool:
    """Return whether our workers would be short of memory if nothing else held any."""
    ours = bytes_at_worst - seen.held_by_others.total_bytes
    return ours >= short_share(seen.memory, rules) * seen.limit_bytes


def _gives_room(seen: Observation, grown_bytes: int, rules: Rules) -> bool:
    """Return whether memory would do without what we have grown by, or if no others held any."""
    without = seen.used_bytes - grown_bytes
    has_room = without < short_share(seen.memory, rules) * seen.limit_bytes
    return has_room or _explains(seen, seen.used_bytes, rules)


def _held_by(seen: Observation, who: str) -> str:
    return f"Not held by {who}, but by {seen.held_by_others}"


def _answer_kill(seen: Observation, last: Done | None, rules: Rules) -> Action:
    """Remove as many workers as do not fit at the peak that was seen, and at least one.

    It removes none if something else had filled the memory when the kernel killed one, or if that
    was one of those that were too many, and about to leave.
    """
    each = max(seen.peak_bytes, *(worker.private_bytes for worker in seen.workers), 1)
    fitting = int((seen.critical_bytes - seen.others_bytes) // each)
    surplus = seen.wanted - fitting
    # Beside others fewer may fit, if it is not for some MB.
    is_part = seen.wanted * each >= (1 - short_share(seen.memory, rules)) * seen.limit_bytes
    helps = is_part and surplus > 0 and fitting > 0
    if not helps and not _explains(seen, seen.limit_bytes, rules):
        reason = f"The kernel killed a worker. {_held_by(seen, 'the workers')}"
        return Action(Kind.WARN, None, reason, answers_kill=True)
    reason = "The kernel killed a worker: the plan is too large for its peaks"
    if last and last.action.kind is Kind.FEWER and _has_none_since(seen, last.at) and surplus <= 0:
        return Action(Kind.NOTHING, answers_kill=True)
    count = _most_to_spare(seen, max(surplus, 1))
    return Action(Kind.FEWER, None, reason, count, answers_kill=True)


def _has_none_since(seen: Observation, at: float) -> bool:
    """Return whether there are enough workers, and all of them are from before that time."""
    is_older = all(worker.lived_seconds > seen.now - at for worker in seen.workers)
    return is_older and len(seen.workers) >= seen.wanted


def _was_killed(seen: Observation) -> bool:
    """Return whether the kernel has killed a worker that is not yet accounted for."""
    at = seen.oom_kill_at
    answers = (Kind.FEWER, Kind.FINISH, Kind.MORE)
    answered = [
        done.at for done in seen.recent if done.action.kind in answers or done.action.answers_kill
    ]
    return at is not None and at > max(answered, default=float("-inf"))


def _can_spare(seen: Observation, count: int = 1) -> bool:
    """Return whether a ready worker stays if some are removed: masters let the oldest go."""
    by_age = sorted(seen.workers, key=lambda worker: worker.age)
    staying = by_age[max(len(by_age) - (seen.wanted - count), 0) :]
    return any(worker.is_ready and not worker.is_leaving for worker in staying)


def _under_pressure(seen: Observation, ready: list[WorkerStats], rules: Rules) -> Action:
    total = sum(worker.grown_bytes for worker in ready)
    grown = max(ready, key=lambda worker: worker.grown_bytes)
    has_grown = grown.grown_bytes >= seen.least_gain_bytes
    is_ours = _is_ours(seen, total, rules)
    # Near the end whoever has grown is recycled, however much others hold.
    if has_grown and (is_ours or seen.used_bytes >= seen.critical_bytes):
        return _recycle(seen, grown, f"grew {_mb(grown.grown_bytes)}", rules)
    if not is_ours:
        return _blame_others(seen, f"these workers have grown by {_mb(total)}")
    each = max(worker.needed_bytes for worker in ready)
    at_worst = max(seen.used_bytes, seen.others_bytes + len(ready) * each)
    if at_worst < seen.critical_bytes:
        return NOTHING
    if not _explains(seen, at_worst, rules):
        return Action(Kind.WARN, None, _held_by(seen, "the workers"))
    if not seen.knows_sizes:
        return _fewer(seen, "Recycling won't help: no worker has grown. The plan is too large", 1)
    why = f"Recycling won't help: a worker needs {_mb(each)}. The plan is too large"
    surplus = (at_worst + _grown_soon(seen) - seen.critical_bytes) / max(each, 1)
    return _fewer(seen, why, surplus if seen.memory.is_throttled else 1)


def _grown_soon(seen: Observation) -> float:
    return max(seen.growth_bytes, 0.0) * SURPLUS_SECONDS


def _too_large_at_peak(seen: Observation, ready: list[WorkerStats], rules: Rules) -> Action | None:
    """Remove workers if all at their peak, others + workers × the largest peak, exceed the limit.

    Not for what all have at the moment: that memory is short shows by itself.
    """
    each, count = max(worker.needed_bytes for worker in ready), seen.wanted
    at_peak = seen.others_bytes + count * each
    is_tight = seen.memory.is_throttled or seen.memory.is_killed_together
    bound = seen.critical_bytes if is_tight else seen.limit_bytes
    # One that was never measured would count as others'.
    if (
        not seen.memory.is_group
        or not seen.knows_sizes
        or at_peak <= bound
        or not _explains(seen, at_peak, rules)
    ):
        return None
    why = f"The plan is too large: all {count} at the peak of {_mb(each)} need {_mb(at_peak)}"
    soon = at_peak + (_grown_soon(seen) if seen.memory.is_throttled else 0)
    fewer = _most_to_spare(seen, math.ceil((soon - bound) / max(each, 1)))
    return Action(Kind.FEWER, None, why, fewer) if fewer else None


def _even_fewer(seen: Observation, ready: list[WorkerStats], last: Done, rules: Rules) -> Action:
    """Remove more while some leave: of the peak that was seen only a part may have been there."""
    if last.action.kind is not Kind.FEWER or seen.now < last.at + PACE_SECONDS:
        return NOTHING
    return _too_large_at_peak(seen, ready, rules) or NOTHING


def _fewer(seen: Observation, reason: str, surplus: float) -> Action:
    """Remove so many workers, and at least one, if that leaves one that is ready."""
    if len(seen.workers) > seen.wanted:
        # Old and new ones run side by side for a moment, as at a reload.
        return NOTHING
    if count := _most_to_spare(seen, max(math.ceil(surplus), 1)):
        return Action(Kind.FEWER, None, reason, count)
    return Action(Kind.WARN, seen.ready[0], reason)


def _most_to_spare(seen: Observation, count: int) -> int:
    """Return how many of these workers can be removed."""
    counts = range(min(count, seen.wanted - 1), 0, -1)
    return next((some for some in counts if _can_spare(seen, some)), 0)


def _recycling_ineffective(seen: Observation, rules: Rules) -> bool:
    """Return whether recycling has not helped for a while: then it goes on at a slow pace only.

    A fast leak keeps memory short too: there it would help to recycle all at once.
    """
    grown = sum(worker.grown_bytes for worker in seen.ready)
    if seen.used_bytes - grown < short_share(seen.memory, rules) * seen.limit_bytes:
        return False
    if seen.now - seen.since < STUBBORN_SECONDS:
        return False
    kinds = (Kind.RECYCLE, Kind.REPLACE)
    recycled = [done.at for done in seen.recent if done.action.kind in kinds]
    return bool(recycled) and seen.now - recycled[-1] < SLOW_PACE_SECONDS


def _recycle(seen: Observation, worker: WorkerStats, reason: str, rules: Rules) -> Action:
    """Recycle a worker; the last one only after another is ready."""
    if _recycling_ineffective(seen, rules):
        return Action(Kind.WARN, None, "Recycling has not helped: something else holds memory")
    if len(seen.ready) > 1:
        return Action(Kind.RECYCLE, worker, reason)
    # As far as it is known what a worker needs that has just started.
    fresh = min((one.memory.first_bytes or 0 for one in seen.workers if one.memory), default=0)
    if seen.used_bytes + fresh <= SAFE_SHARE * seen.limit_bytes:
        return Action(Kind.REPLACE, worker, reason)
    return Action(Kind.WARN, worker, f"A worker {reason}; there is no room to start its successor")


def _one_more(seen: Observation) -> Action:
    if seen.wanted >= seen.planned:
        return NOTHING
    changes = [done for done in seen.recent if done.action.kind in (Kind.FEWER, Kind.MORE)]
    # Each time that one more was one too many, wait twice as long.
    in_vain = sum(
        (before.action.kind, after.action.kind) == (Kind.MORE, Kind.FEWER)
        for before, after in pairwise(changes)
    )
    patience = min(CALM_SECONDS * 2**in_vain, LONGEST_CALM_SECONDS)
    killed = seen.since if seen.oom_kill_at is None else seen.oom_kill_at
    since = max([seen.since, killed, *(done.at for done in changes)])
    then = seen.others_bytes + (seen.wanted + 1) * seen.needed_bytes
    if then > seen.critical_bytes or seen.now - since < patience:
        return NOTHING
    return Action(Kind.MORE, None, "there is room again")


def _mb(size: float) -> str:
    return f"{round(size / MB)} MB"
