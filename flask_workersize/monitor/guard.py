"""What to do about memory: a pure function from an observation to an action.

The order of the questions is the policy:

1. Is something under way? Wait: never two at once. (The kernel does not wait: where it has killed
   a worker, there is one fewer.)
2. Has the last worker got a successor that is ready? Let the old one go.
3. Was the last action a moment ago? Wait.
4. Is a worker above its own bound? Recycle it.
5. Is memory short? Recycle the worker that has grown most since it was warm. Has none grown, that
   is no leak, and recycling does not help: have one worker fewer before memory runs out, and say
   that the plan is too large.
6. Has memory been free for a while, and are there fewer workers than planned? One more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from ..sizing.plan import MB

PACE_SECONDS = 0.05
"""Shortest time between two actions: less than a worker takes to leave and another to come."""

HORIZON_SECONDS = 0.5
"""How far ahead growth is looked at: some times what an action takes to have an effect."""

STUBBORN_SECONDS = 30.0
"""How long memory may stay short while workers are recycled, before that counts as in vain."""

SLOW_PACE_SECONDS = 10.0
"""Time between two recyclings from then on."""

LEAST_GAIN = 0.02
"""Share of the limit that a recycled worker has to give back at least: less is noise."""

WARM_REQUESTS = 25
"""Requests after which a worker is warm: its caches are there, and what comes then is growth."""

CALM_SECONDS = 10.0
"""How long memory has to be free before there is one worker more; doubles each time that this
proves too early, up to an hour."""

LONGEST_CALM_SECONDS = 3600.0

CRITICAL_SHARE = 0.9
"""Share of the limit above which workers are removed, and a server of one process is not ready."""

SAFE_SHARE = 0.97
"""Share of the limit that a second worker, beside the last one, may bring us to."""


class Kind(StrEnum):
    """What can be done: ``REPLACE`` starts the successor of a last worker, ``FINISH`` lets that go.

    ``EXIT`` is for a server of one process, which has nobody to go in its place.
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
class Worker:
    """A worker, as the guard sees it.

    :param age: how gunicorn counts its workers
    :param own_bytes: memory that is its own: USS, or RSS where the system tells no more
    :param warm_bytes: the same when it was warm; ``None`` before
    :param is_ready: whether it takes requests
    :param is_leaving: whether it was told to end
    """

    age: int
    own_bytes: int
    warm_bytes: int | None = None
    is_ready: bool = True
    is_leaving: bool = False

    @property
    def grown_bytes(self) -> int:
        """What recycling it would give back for longer than the successor's first requests."""
        return 0 if self.warm_bytes is None else max(self.own_bytes - self.warm_bytes, 0)

    @property
    def needed_bytes(self) -> int:
        """What it needs without growing, as far as that is known."""
        return self.own_bytes if self.warm_bytes is None else self.warm_bytes


@dataclass(frozen=True)
class Action:
    """What to do, and why in one sentence.

    :param kind: what
    :param worker: the worker that is meant, if one is
    :param reason: why; empty for nothing
    """

    kind: Kind
    worker: Worker | None = None
    reason: str = ""


@dataclass(frozen=True)
class Done:
    """An action of the past.

    :param at: when, in seconds of a monotonic clock
    :param action: what
    """

    at: float
    action: Action


@dataclass(frozen=True)
class Rules:
    """What the operator set.

    :param recycle_share: share of the limit above which workers are recycled, 0 to 1
    :param worker_max_bytes: own memory above which a worker is recycled; ``None`` for no bound
    :param patience_seconds: how long an action may be under way before it is given up
    :param exits: whether a server of one process is to end before the kernel ends it
    """

    recycle_share: float = 0.7
    worker_max_bytes: int | None = None
    patience_seconds: float = 30.0
    exits: bool = False


@dataclass(frozen=True)
class Observation:
    """What is the case.

    :param now: seconds of a monotonic clock
    :param limit_bytes: memory that may be used
    :param used_bytes: memory that is used: of the control group its working set, of the machine
        what is not available
    :param is_group: whether the limit is that of a control group, and not of the machine
    :param planned: workers that are planned
    :param wanted: workers that there should be now
    :param workers: those that there are
    :param fresh_bytes: own memory of a worker that has just started
    :param peak_bytes: the most own memory that a worker was seen with
    :param oom_kill_at: when the kernel last killed a process for want of memory; ``None`` for never
    :param recent: what was done, the latest last
    :param free_since: since when memory has been free; ``None`` if it is not
    :param growth_bytes: by how much it grows in a second
    :param short_since: since when it has been above the share from which workers are recycled;
        ``None`` if it is not
    """

    now: float
    limit_bytes: int
    used_bytes: int
    is_group: bool
    planned: int
    wanted: int
    workers: tuple[Worker, ...]
    fresh_bytes: int = 0
    peak_bytes: int = 0
    oom_kill_at: float | None = None
    recent: tuple[Done, ...] = ()
    free_since: float | None = None
    growth_bytes: float = 0.0
    short_since: float | None = None

    @property
    def ready(self) -> list[Worker]:
        """Workers that take requests and stay, the one with most memory first.

        Of more than are wanted the master lets the oldest go.
        """
        staying = [worker for worker in self.workers if not worker.is_leaving]
        staying.sort(key=lambda worker: worker.age)
        ready = [worker for worker in staying[-self.wanted :] if worker.is_ready]
        return sorted(ready, key=lambda worker: -worker.own_bytes)

    @property
    def used_share(self) -> float:
        """Share of the limit that is used."""
        return self.used_bytes / self.limit_bytes

    def is_short(self, rules: Rules) -> bool:
        """Return whether something should be done, now or because of what is to come."""
        ahead = self.used_bytes + max(self.growth_bytes, 0.0) * HORIZON_SECONDS
        return self.used_share >= rules.recycle_share or ahead >= CRITICAL_SHARE * self.limit_bytes


NOTHING = Action(Kind.NOTHING)


def decide(seen: Observation, rules: Rules) -> Action:
    """Decide what to do.

    :param seen: what is the case
    :param rules: what the operator set
    """
    ready = seen.ready
    acted = [done for done in seen.recent if done.action.kind is not Kind.WARN]
    last = acted[-1] if acted else None
    has_stand_in = last is not None and last.action.kind is Kind.REPLACE
    if _was_killed(seen) and _can_spare_one(seen) and not has_stand_in:
        return Action(
            Kind.FEWER, None, "the kernel has killed a worker: the plan is too large for its peaks"
        )
    if not ready or _is_under_way(seen, last, rules):
        return NOTHING
    if has_stand_in:
        if len(ready) > 1 and _can_spare_one(seen):
            return Action(Kind.FINISH, None, "its successor is ready")
        return Action(Kind.WARN, ready[0], "the worker that is to take over is not ready")
    if last and seen.now < last.at + PACE_SECONDS:
        return NOTHING
    return _steady(seen, ready, rules)


def _steady(seen: Observation, ready: list[Worker], rules: Rules) -> Action:
    largest, bound = ready[0], rules.worker_max_bytes
    if bound is not None and largest.own_bytes > bound:
        reason = f"worker has {_mb(largest.own_bytes)}, its bound is {_mb(bound)}"
        return _recycle(seen, largest, reason, rules)
    if seen.is_short(rules):
        return _under_pressure(seen, ready, rules)
    return _one_more(seen, rules)


def decide_alone(seen: Observation, rules: Rules) -> Action:
    """Decide for a server of one process, such as waitress: nobody can go in its place.

    :param seen: what is the case; its one worker is the server
    :param rules: what the operator set
    :returns: a warning above the first share, and ``EXIT`` above the critical one
    """
    if not seen.workers or seen.used_share < rules.recycle_share:
        return NOTHING
    worker = seen.workers[0]
    used = f"{_mb(seen.used_bytes)} of {_mb(seen.limit_bytes)} are used"
    if not _is_ours(seen, worker.grown_bytes, rules):
        reason = f"{used}, but not by this server: it has grown by {_mb(worker.grown_bytes)}"
        return _blame_others(seen, reason, rules)
    has_grown = worker.grown_bytes >= LEAST_GAIN * seen.limit_bytes
    # One that needs so much to begin with would be as large after a new start.
    kind = Kind.EXIT if has_grown and seen.used_share >= CRITICAL_SHARE else Kind.WARN
    return Action(kind, worker, f"{used}; this server holds {_mb(worker.own_bytes)}")


def _is_under_way(seen: Observation, last: Done | None, rules: Rules) -> bool:
    if last is None or seen.now > last.at + rules.patience_seconds:
        return False
    is_final = all(worker.is_ready and not worker.is_leaving for worker in seen.workers)
    return not is_final or len(seen.workers) != seen.wanted


def _is_ours(seen: Observation, grown_bytes: int, rules: Rules) -> bool:
    """Return whether memory is short because of this server: on a machine others may be it."""
    excess = seen.used_bytes - rules.recycle_share * seen.limit_bytes
    return seen.is_group or grown_bytes >= max(excess, 1)


def _blame_others(seen: Observation, reason: str, rules: Rules) -> Action:
    """Warn of others shortly before the end: that a machine is well used is no news."""
    is_critical = seen.used_share >= CRITICAL_SHARE
    return Action(Kind.WARN, None, reason) if is_critical else NOTHING


def _was_killed(seen: Observation) -> bool:
    """Return whether the kernel has killed a worker that is not yet accounted for."""
    at = seen.oom_kill_at
    answers = (Kind.FEWER, Kind.FINISH, Kind.MORE)
    answered = [done.at for done in seen.recent if done.action.kind in answers]
    return at is not None and at > max(answered, default=float("-inf"))


def _can_spare_one(seen: Observation) -> bool:
    """Return whether one that is ready stays if there is one fewer: masters let the oldest go."""
    by_age = sorted(seen.workers, key=lambda worker: worker.age)
    staying = by_age[max(len(by_age) - (seen.wanted - 1), 0) :]
    return any(worker.is_ready and not worker.is_leaving for worker in staying)


def _under_pressure(seen: Observation, ready: list[Worker], rules: Rules) -> Action:
    used = f"{_mb(seen.used_bytes)} of {_mb(seen.limit_bytes)} are used"
    total = sum(worker.grown_bytes for worker in ready)
    if not _is_ours(seen, total, rules):
        reason = f"{used}, but not by this server: its workers have grown by {_mb(total)}"
        return _blame_others(seen, reason, rules)
    grown = max(ready, key=lambda worker: worker.grown_bytes)
    if grown.grown_bytes >= LEAST_GAIN * seen.limit_bytes:
        reason = f"{used}; this worker has grown by {_mb(grown.grown_bytes)}"
        return _recycle(seen, grown, reason, rules)
    each = max(worker.needed_bytes for worker in ready)
    others = max(seen.used_bytes - sum(worker.own_bytes for worker in seen.workers), 0)
    all_warm = others + len(ready) * each
    if max(seen.used_bytes, all_warm) < CRITICAL_SHARE * seen.limit_bytes:
        return NOTHING
    reason = (
        f"{used}, and recycling does not help, since a worker needs {_mb(each)} to begin with: "
        "this is not a leak, the plan is too large"
    )
    return _one_fewer(seen, reason)


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
    if seen.short_since is None or seen.now - seen.short_since < STUBBORN_SECONDS:
        return False
    kinds = (Kind.RECYCLE, Kind.REPLACE)
    recycled = [done.at for done in seen.recent if done.action.kind in kinds]
    return bool(recycled) and seen.now - recycled[-1] < SLOW_PACE_SECONDS


def fitting_workers(seen: Observation, rules: Rules) -> int:
    """Return how many workers fit, each as large as the largest is now, at least 1.

    What is not the workers' own is there anyway: (share of the limit - shared) / own, rounded down.
    """
    own = [worker.own_bytes for worker in seen.workers]
    shared = max(seen.used_bytes - sum(own), 0)
    room = rules.recycle_share * seen.limit_bytes - shared
    return max(1, int(room // max([1, seen.peak_bytes, *own])))


def _recycle(seen: Observation, worker: Worker, reason: str, rules: Rules) -> Action:
    """Recycle a worker; the last one only after another is ready."""
    if _recycling_ineffective(seen, rules):
        used = f"{_mb(seen.used_bytes)} of {_mb(seen.limit_bytes)} are used"
        why = f"{used}, and recycling has not brought that down: something else holds memory"
        return Action(Kind.WARN, None, why)
    if len(seen.ready) > 1:
        return Action(Kind.RECYCLE, worker, reason)
    if seen.used_bytes + seen.fresh_bytes <= SAFE_SHARE * seen.limit_bytes:
        return Action(Kind.REPLACE, worker, reason)
    return Action(Kind.WARN, worker, f"{reason}; there is no room for a second one beside it")


def _one_more(seen: Observation, rules: Rules) -> Action:
    if seen.wanted >= seen.planned or seen.free_since is None:
        return NOTHING
    changes = [done for done in seen.recent if done.action.kind in (Kind.FEWER, Kind.MORE)]
    # Each time that one more was one too many, wait twice as long.
    in_vain = sum(
        (before.action.kind, after.action.kind) == (Kind.MORE, Kind.FEWER)
        for before, after in pairwise(changes)
    )
    patience = min(CALM_SECONDS * 2**in_vain, LONGEST_CALM_SECONDS)
    since = max([seen.free_since, seen.oom_kill_at or 0.0, *(done.at for done in changes)])
    own = sum(worker.own_bytes for worker in seen.workers)
    then = max(seen.used_bytes - own, 0) + (seen.wanted + 1) * seen.peak_bytes
    has_room = then <= CRITICAL_SHARE * seen.limit_bytes
    if not has_room or seen.now - since < patience:
        return NOTHING
    return Action(Kind.MORE, None, f"there is room again: {_mb(seen.used_bytes)} are used")


def _mb(size: float) -> str:
    return f"{round(size / MB)} MB"
