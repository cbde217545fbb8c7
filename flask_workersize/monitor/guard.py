"""The memory guard's policy: a pure function from an observation to an action.

The order of the questions is the policy:

1. Is something under way? Wait: never two at once. (The kernel does not wait: after it has killed
   a worker, remove one.)
2. Is the replacement of the last worker ready? Stop the old one.
3. Was the last action a moment ago? Wait.
4. Is a worker above its own bound? Recycle it.
5. Would memory be too small with all workers at their peak at the same time? Remove the excess
   workers before the OOM killer does.
6. Is memory short? Recycle the worker that has grown most since it was warm. If none has grown,
   that is no leak, and recycling does not help. If the workers explain the shortage, remove one
   before memory runs out, and log that the plan is too large; if something else holds the memory,
   removing workers does not help either: keep them, and log what holds it.
7. Has memory been free for a while, and are there fewer workers than planned? Add one.
"""

from __future__ import annotations

from ..runtime.snapshot import WorkerStats
from .fitting import (
    answer_kill,
    can_spare,
    explains,
    fewer,
    grown_soon,
    held_by,
    too_large_at_peak,
)
from .observation import (
    NOTHING,
    Action,
    Done,
    Kind,
    Observation,
    Rules,
    is_short,
    mb,
    short_bytes,
)

PACE_SECONDS = 0.05
"""Shortest time between two actions: less than replacing a worker takes."""

LEAST_SHARE_TO_EXIT = 0.5
"""Share of what a machine's others leave that a server of one process has to have grown by before
it ends: a new start must give room for long."""

STUBBORN_SECONDS = 30.0
"""How long memory may stay short while workers are recycled, before that counts as ineffective."""

SLOW_PACE_SECONDS = 10.0
"""Time between two recyclings from then on."""

WARM_REQUESTS = 25
"""Requests after which a worker is warm: its caches are there, and what comes then is growth."""

CALM_SECONDS = 10.0
"""How long memory has to stay free before a worker is added; doubles each time that this proves
too early, up to an hour."""

LONGEST_CALM_SECONDS = 3600.0

SAFE_SHARE = 0.97
"""Share of the limit that a second worker, beside the last one, may bring us to."""


def decide(seen: Observation, rules: Rules) -> Action:
    """Decide what to do."""
    ready, last = seen.ready, seen.history.last
    has_stand_in = last is not None and last.action.kind is Kind.REPLACE
    if seen.oom_kill_at is not None and can_spare(seen) and not has_stand_in:
        return answer_kill(seen, rules)
    if not ready:
        return NOTHING
    if last and _is_under_way(seen, last, rules):
        return _even_fewer(seen, ready, last, rules)
    if has_stand_in:
        return _finish(seen, ready)
    if last and seen.now < last.at + PACE_SECONDS:
        return NOTHING
    return _steady(seen, ready, rules)


def decide_alone(seen: Observation, rules: Rules) -> Action:
    """Decide for a server of one process, such as waitress, which nothing can replace.

    :returns: a warning above the first share, and ``EXIT`` above the critical one
    """
    is_measured = bool(seen.workers) and seen.workers[0].memory is not None
    if not is_measured or seen.used_bytes < short_bytes(seen, rules):
        return NOTHING
    worker, is_critical = seen.workers[0], seen.used_bytes >= seen.critical_bytes
    least = 0 if seen.memory.is_group else LEAST_SHARE_TO_EXIT * seen.left_bytes
    has_grown = worker.grown_bytes >= max(least, seen.least_gain_bytes)
    if has_grown and is_critical and _gives_room(seen, worker.grown_bytes, rules):
        return Action(Kind.EXIT, worker, f"This server holds {mb(worker.private_bytes)}")
    if not _is_ours(seen, worker.grown_bytes, rules):
        return _blame_others(seen, f"this server grew {mb(worker.grown_bytes)}")
    # One that needs so much to begin with would be as large after a new start.
    if not explains(seen, seen.used_bytes, rules):
        return Action(Kind.WARN, None, held_by(seen, "this server"))
    return Action(Kind.WARN, worker, f"This server holds {mb(worker.private_bytes)}")


def _finish(seen: Observation, ready: list[WorkerStats]) -> Action:
    if len(ready) > 1 and can_spare(seen):
        return Action(Kind.FINISH, None, "its successor is ready")
    return Action(Kind.WARN, ready[0], "The replacement worker is not ready")


def _steady(seen: Observation, ready: list[WorkerStats], rules: Rules) -> Action:
    largest, bound = ready[0], rules.worker_max_bytes
    if bound is not None and largest.private_bytes > bound:
        reason = f"has {mb(largest.private_bytes)}, above its limit of {mb(bound)}"
        return _recycle(seen, largest, reason, rules)
    if too_large := too_large_at_peak(seen, ready, rules):
        return too_large
    if is_short(seen.memory, seen.growth_bytes, rules):
        return _under_pressure(seen, ready, rules)
    return _one_more(seen)


def _is_under_way(seen: Observation, last: Done, rules: Rules) -> bool:
    if seen.now > last.at + rules.patience_seconds:
        return False
    is_final = all(worker.is_ready and not worker.is_leaving for worker in seen.workers)
    return not is_final or len(seen.workers) != seen.wanted


def _even_fewer(seen: Observation, ready: list[WorkerStats], last: Done, rules: Rules) -> Action:
    """Remove more while some leave: of the peak that was seen only a part may have been there."""
    if last.action.kind is not Kind.FEWER or seen.now < last.at + PACE_SECONDS:
        return NOTHING
    return too_large_at_peak(seen, ready, rules) or NOTHING


def _under_pressure(seen: Observation, ready: list[WorkerStats], rules: Rules) -> Action:
    total = sum(worker.grown_bytes for worker in ready)
    grown = max(ready, key=lambda worker: worker.grown_bytes)
    has_grown = grown.grown_bytes >= seen.least_gain_bytes
    is_ours = _is_ours(seen, total, rules)
    # Close to the limit a worker that has grown is recycled, however much others hold.
    if has_grown and (is_ours or seen.used_bytes >= seen.critical_bytes):
        return _recycle(seen, grown, f"grew {mb(grown.grown_bytes)}", rules)
    if not is_ours:
        return _blame_others(seen, f"these workers grew {mb(total)}")
    each = max(worker.needed_bytes for worker in ready)
    at_worst = max(seen.used_bytes, seen.others_bytes + len(ready) * each)
    if at_worst < seen.critical_bytes:
        return NOTHING
    if not explains(seen, at_worst, rules):
        return Action(Kind.WARN, None, held_by(seen, "the workers"))
    if not seen.knows_sizes:
        return fewer(seen, "Recycling won't help: no worker has grown. The plan is too large", 1)
    why = f"Recycling won't help: a worker needs {mb(each)}. The plan is too large"
    surplus = (at_worst + grown_soon(seen) - seen.critical_bytes) / max(each, 1)
    return fewer(seen, why, surplus if seen.memory.is_throttled else 1)


def _is_ours(seen: Observation, grown_bytes: int, rules: Rules) -> bool:
    """Return whether this server is the cause of the shortage; on a machine others may be."""
    excess = seen.used_bytes - short_bytes(seen, rules)
    return seen.memory.is_group or grown_bytes >= max(excess, 1)


def _blame_others(seen: Observation, ours: str) -> Action:
    """Warn of others only close to the limit: a well-used machine is not worth a warning."""
    if seen.used_bytes < seen.critical_bytes:
        return NOTHING
    return Action(Kind.WARN, None, f"Other processes use it: {ours}")


def _gives_room(seen: Observation, grown_bytes: int, rules: Rules) -> bool:
    """Return whether memory would suffice without our growth, or without other processes."""
    without = seen.used_bytes - grown_bytes
    has_room = without < short_bytes(seen, rules)
    return has_room or explains(seen, seen.used_bytes, rules)


def _recycling_ineffective(seen: Observation, rules: Rules) -> bool:
    """Return whether recycling has not helped for a while: then it goes on at a slow pace only.

    A fast leak keeps memory short too: there it would help to recycle all at once.
    """
    grown = sum(worker.grown_bytes for worker in seen.ready)
    if seen.used_bytes - grown < short_bytes(seen, rules):
        return False
    if seen.now - seen.since < STUBBORN_SECONDS:
        return False
    return seen.now - seen.history.recycled_at < SLOW_PACE_SECONDS


def _recycle(seen: Observation, worker: WorkerStats, reason: str, rules: Rules) -> Action:
    """Recycle a worker; the last one only after another is ready."""
    if _recycling_ineffective(seen, rules):
        return Action(Kind.WARN, None, "Recycling did not help: something else uses the memory")
    if len(seen.ready) > 1:
        return Action(Kind.RECYCLE, worker, reason)
    # As far as it is known what a worker needs that has just started.
    fresh = min((one.memory.first_bytes or 0 for one in seen.workers if one.memory), default=0)
    if seen.used_bytes + fresh <= SAFE_SHARE * seen.limit_bytes:
        return Action(Kind.REPLACE, worker, reason)
    return Action(Kind.WARN, worker, f"A worker {reason}; no memory left to start its replacement")


def _one_more(seen: Observation) -> Action:
    if seen.wanted >= seen.planned:
        return NOTHING
    # Each time that one more was one too many, wait twice as long.
    patience = min(CALM_SECONDS * 2**seen.history.added_in_vain, LONGEST_CALM_SECONDS)
    killed = seen.since if seen.oom_kill_at is None else seen.oom_kill_at
    since = max(seen.since, killed, seen.history.changed_at)
    then = seen.others_bytes + (seen.wanted + 1) * seen.needed_bytes
    if then > seen.critical_bytes or seen.now - since < patience:
        return NOTHING
    return Action(Kind.MORE, None, "there is room again")
