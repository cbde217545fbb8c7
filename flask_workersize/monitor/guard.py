"""What to do about memory: a pure function from an observation to an action.

The order of the questions is the policy:

1. Is something under way? Wait: never two at once. (The kernel does not wait: after it has killed
   a worker, remove one.)
2. Is the successor of the last worker ready? Let the old one go.
3. Was the last action a moment ago? Wait.
4. Is a worker above its own bound? Recycle it.
5. Is memory short? Recycle the worker that has grown most since it was warm. If none has grown,
   that is no leak, and recycling does not help: remove a worker before memory runs out, and log
   that the plan is too large.
6. Has memory been free for a while, and are there fewer workers than planned? Add one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from ..runtime.snapshot import WorkerStats
from ..sizing.plan import MB

PACE_SECONDS = 0.05
"""Shortest time between two actions: less than a worker takes to leave and another to come."""

HORIZON_SECONDS = 0.5
"""How far ahead growth is projected: some times what an action takes to have an effect."""

STUBBORN_SECONDS = 30.0
"""How long memory may stay short while workers are recycled, before that counts as ineffective."""

SLOW_PACE_SECONDS = 10.0
"""Time between two recyclings from then on."""

LEAST_GAIN = 0.02
"""Share of the limit that a recycled worker has to give back at least: less is noise."""

WARM_REQUESTS = 25
"""Requests after which a worker is warm: its caches are there, and what comes then is growth."""

CALM_SECONDS = 10.0
"""How long memory has to be free before a worker is added; doubles each time that this proves too
early, up to an hour."""

LONGEST_CALM_SECONDS = 3600.0

CRITICAL_SHARE = 0.9
"""Share of the limit above which workers are removed, and a server of one process is not ready.
Closer to the limit the kernel takes back pages of the programs themselves, and all slows down."""

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
    """What to do, to which worker, and why."""

    kind: Kind
    worker: WorkerStats | None = None
    reason: str = ""


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
    limit_bytes: int
    used_bytes: int
    """Of the control group its working set, of the machine what is not available."""

    is_group: bool
    """Whether the limit is that of a control group, and not of the machine."""

    planned: int
    wanted: int
    """Workers that there should be now."""

    workers: tuple[WorkerStats, ...]
    peak_bytes: int = 0
    """The most private memory that a worker was seen with."""

    oom_kill_at: float | None = None
    """When the kernel last killed a worker."""

    recent: tuple[Done, ...] = ()
    """What was done, the latest last."""

    since: float = 0.0
    """When memory last went above the share from which workers are recycled, or below it."""

    growth_bytes: float = 0.0
    """How much more is used in a second."""

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
    def used_share(self) -> float:
        """Share of the limit that is used."""
        return self.used_bytes / self.limit_bytes

    @property
    def others_bytes(self) -> int:
        """What is used, and not private to a worker."""
        return max(self.used_bytes - sum(worker.private_bytes for worker in self.workers), 0)


def is_short(used_bytes: int, limit_bytes: int, growth_bytes: float, rules: Rules) -> bool:
    """Return whether something should be done, now or because of what is to come.

    It is where used is above the first share, or used + growth in a second × horizon above the
    critical one.
    """
    ahead = used_bytes + max(growth_bytes, 0.0) * HORIZON_SECONDS
    is_full = used_bytes >= rules.recycle_share * limit_bytes
    return is_full or ahead >= CRITICAL_SHARE * limit_bytes


NOTHING = Action(Kind.NOTHING)


def decide(seen: Observation, rules: Rules) -> Action:
    """Decide what to do."""
    ready = seen.ready
    acted = [done for done in seen.recent if done.action.kind is not Kind.WARN]
    last = acted[-1] if acted else None
    has_stand_in = last is not None and last.action.kind is Kind.REPLACE
    if _was_killed(seen) and _can_spare_one(seen) and not has_stand_in:
        reason = "The kernel killed a worker: the plan is too large for its peaks"
        return Action(Kind.FEWER, None, reason)
    if not ready or _is_under_way(seen, last, rules):
        return NOTHING
    if has_stand_in:
        if len(ready) > 1 and _can_spare_one(seen):
            return Action(Kind.FINISH, None, "its successor is ready")
        return Action(Kind.WARN, ready[0], "The worker that is to take over is not ready")
    if last and seen.now < last.at + PACE_SECONDS:
        return NOTHING
    return _steady(seen, ready, rules)


def _steady(seen: Observation, ready: list[WorkerStats], rules: Rules) -> Action:
    largest, bound = ready[0], rules.worker_max_bytes
    if bound is not None and largest.private_bytes > bound:
        reason = f"has {_mb(largest.private_bytes)}, its bound is {_mb(bound)}"
        return _recycle(seen, largest, reason, rules)
    if is_short(seen.used_bytes, seen.limit_bytes, seen.growth_bytes, rules):
        return _under_pressure(seen, ready, rules)
    return _one_more(seen)


def decide_alone(seen: Observation, rules: Rules) -> Action:
    """Decide for a server of one process, such as waitress, which nothing can replace.

    :returns: a warning above the first share, and ``EXIT`` above the critical one
    """
    if not seen.workers or seen.used_share < rules.recycle_share:
        return NOTHING
    worker = seen.workers[0]
    if not _is_ours(seen, worker.grown_bytes, rules):
        return _blame_others(seen, f"this server has grown by {_mb(worker.grown_bytes)}")
    has_grown = worker.grown_bytes >= LEAST_GAIN * seen.limit_bytes
    # One that needs so much to begin with would be as large after a new start.
    kind = Kind.EXIT if has_grown and seen.used_share >= CRITICAL_SHARE else Kind.WARN
    return Action(kind, worker, f"This server holds {_mb(worker.private_bytes)}")


def _is_under_way(seen: Observation, last: Done | None, rules: Rules) -> bool:
    if last is None or seen.now > last.at + rules.patience_seconds:
        return False
    is_final = all(worker.is_ready and not worker.is_leaving for worker in seen.workers)
    return not is_final or len(seen.workers) != seen.wanted


def _is_ours(seen: Observation, grown_bytes: int, rules: Rules) -> bool:
    """Return whether memory is short because of this server: on a machine others may be it."""
    excess = seen.used_bytes - rules.recycle_share * seen.limit_bytes
    return seen.is_group or grown_bytes >= max(excess, 1)


def _blame_others(seen: Observation, ours: str) -> Action:
    """Warn of others shortly before the end: that a machine is well used is no news."""
    if seen.used_share < CRITICAL_SHARE:
        return NOTHING
    return Action(Kind.WARN, None, f"Other processes hold it: {ours}")


def _was_killed(seen: Observation) -> bool:
    """Return whether the kernel has killed a worker that is not yet accounted for."""
    at = seen.oom_kill_at
    answers = (Kind.FEWER, Kind.FINISH, Kind.MORE)
    answered = [done.at for done in seen.recent if done.action.kind in answers]
    return at is not None and at > max(answered, default=float("-inf"))


def _can_spare_one(seen: Observation) -> bool:
    """Return whether a ready worker stays if one is removed: masters let the oldest go."""
    by_age = sorted(seen.workers, key=lambda worker: worker.age)
    staying = by_age[max(len(by_age) - (seen.wanted - 1), 0) :]
    return any(worker.is_ready and not worker.is_leaving for worker in staying)


def _under_pressure(seen: Observation, ready: list[WorkerStats], rules: Rules) -> Action:
    total = sum(worker.grown_bytes for worker in ready)
    if not _is_ours(seen, total, rules):
        return _blame_others(seen, f"these workers have grown by {_mb(total)}")
    grown = max(ready, key=lambda worker: worker.grown_bytes)
    if grown.grown_bytes >= LEAST_GAIN * seen.limit_bytes:
        return _recycle(seen, grown, f"grew {_mb(grown.grown_bytes)}", rules)
    each = max(map(_needed_bytes, ready))
    all_warm = seen.others_bytes + len(ready) * each
    if max(seen.used_bytes, all_warm) < CRITICAL_SHARE * seen.limit_bytes:
        return NOTHING
    why = f"Recycling won't help: a fresh worker needs {_mb(each)}"
    return _one_fewer(seen, f"{why}. The plan is too large")


def _needed_bytes(worker: WorkerStats) -> int:
    """Return what a worker needs without growing, as far as that is known."""
    warm = worker.memory.warm_bytes if worker.memory else None
    return worker.private_bytes if warm is None else warm


def _one_fewer(seen: Observation, reason: str) -> Action:
    if len(seen.workers) > seen.wanted:
        # Old and new ones run side by side for a moment, as at a reload.
        return NOTHING
    if _can_spare_one(seen):
        return Action(Kind.FEWER, None, reason)
    return Action(Kind.WARN, seen.ready[0], reason)


def _recycling_ineffective(seen: Observation, rules: Rules) -> bool:
    """Return whether recycling has not helped for a while: then it goes on at a slow pace only.

    A fast leak keeps memory short too: there it would help to recycle all at once.
    """
    grown = sum(worker.grown_bytes for worker in seen.ready)
    if seen.used_bytes - grown < rules.recycle_share * seen.limit_bytes:
        return False
    if seen.now - seen.since < STUBBORN_SECONDS:
        return False
    kinds = (Kind.RECYCLE, Kind.REPLACE)
    recycled = [done.at for done in seen.recent if done.action.kind in kinds]
    return bool(recycled) and seen.now - recycled[-1] < SLOW_PACE_SECONDS


def fitting_workers(seen: Observation, rules: Rules) -> int:
    """Return how many workers fit, each as large as the largest was, at least 1.

    What is not private to workers is used anyway: (share of the limit - others) / private, rounded
    down.
    """
    room = rules.recycle_share * seen.limit_bytes - seen.others_bytes
    largest = max([1, seen.peak_bytes, *(worker.private_bytes for worker in seen.workers)])
    return max(1, int(room // largest))


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
    then = seen.others_bytes + (seen.wanted + 1) * seen.peak_bytes
    if then > CRITICAL_SHARE * seen.limit_bytes or seen.now - since < patience:
        return NOTHING
    return Action(Kind.MORE, None, "there is room again")


def _mb(size: float) -> str:
    return f"{round(size / MB)} MB"
