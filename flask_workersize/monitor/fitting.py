"""How many workers fit: at the peak that was seen, and after the kernel has killed one.

Workers are removed only if they explain that memory is short, and never the last one that is ready.
"""

from __future__ import annotations

import math

from ..runtime.snapshot import WorkerStats
from .observation import NOTHING, Action, Kind, Observation, Rules, mb, short_bytes

SURPLUS_SECONDS = 2.0
"""How far ahead, if several workers are removed at once: later ones would take longer to leave."""


def too_large_at_peak(seen: Observation, ready: list[WorkerStats], rules: Rules) -> Action | None:
    """Remove workers if all at their peak, others + workers × the largest peak, exceed the limit.

    Current use does not count here: the check for short memory covers it.
    """
    each = max(worker.needed_bytes for worker in ready)
    at_peak = seen.others_bytes + seen.wanted * each
    is_tight = seen.memory.is_throttled or seen.memory.is_killed_together
    bound = seen.critical_bytes if is_tight else seen.limit_bytes
    # One that was never measured would count as others'.
    if (
        not seen.memory.is_group
        or not seen.knows_sizes
        or at_peak <= bound
        or not explains(seen, at_peak, rules)
    ):
        return None
    why = f"The plan is too large: {seen.wanted} workers at a peak of {mb(each)} need {mb(at_peak)}"
    soon = at_peak + (grown_soon(seen) if seen.memory.is_throttled else 0)
    count = _most_to_spare(seen, math.ceil((soon - bound) / max(each, 1)))
    return Action(Kind.FEWER, None, why, count) if count else None


def answer_kill(seen: Observation, rules: Rules) -> Action:
    """Remove as many workers as do not fit at the peak that was seen, and at least one.

    It removes none if something else had filled the memory when the kernel killed one, or if that
    was one of those that were too many, and about to leave.
    """
    each = max(seen.peak_bytes, *(worker.private_bytes for worker in seen.workers), 1)
    fitting = int((seen.critical_bytes - seen.others_bytes) // each)
    surplus = seen.wanted - fitting
    # Beside others fewer may fit, if it is not for some MB.
    is_part = seen.wanted * each >= seen.limit_bytes - short_bytes(seen, rules)
    helps = is_part and surplus > 0 and fitting > 0
    if not helps and not explains(seen, seen.limit_bytes, rules):
        reason = f"A worker was OOM-killed. {held_by(seen, 'the workers')}"
        return Action(Kind.WARN, None, reason, is_answer=True)
    reason = "A worker was OOM-killed: the plan is too large for its peaks"
    if surplus <= 0 and _was_too_many(seen):
        return Action(Kind.NOTHING, is_answer=True)
    return Action(Kind.FEWER, None, reason, _most_to_spare(seen, max(surplus, 1)))


def _was_too_many(seen: Observation) -> bool:
    """Return whether the last action removed workers, and enough are left."""
    last = seen.history.last
    if last is None or last.action.kind is not Kind.FEWER or len(seen.workers) < seen.wanted:
        return False
    return all(worker.lived_seconds > seen.now - last.at for worker in seen.workers)


def fewer(seen: Observation, reason: str, surplus: float) -> Action:
    """Remove so many workers, at least one, if a ready one stays."""
    if len(seen.workers) > seen.wanted:
        # Old and new ones run side by side for a moment, as at a reload.
        return NOTHING
    if count := _most_to_spare(seen, max(math.ceil(surplus), 1)):
        return Action(Kind.FEWER, None, reason, count)
    return Action(Kind.WARN, seen.ready[0], reason)


def explains(seen: Observation, bytes_at_worst: float, rules: Rules) -> bool:
    """Return whether our workers alone would be short of memory."""
    ours = bytes_at_worst - seen.held_by_others.total_bytes
    return ours >= short_bytes(seen, rules)


def held_by(seen: Observation, who: str) -> str:
    """Return what holds memory, as a reason."""
    return f"Not held by {who}, but by {seen.held_by_others}"


def can_spare(seen: Observation, count: int = 1) -> bool:
    """Return whether a ready worker stays if some are removed: masters let the oldest go."""
    by_age = sorted(seen.workers, key=lambda worker: worker.age)
    staying = by_age[max(len(by_age) - (seen.wanted - count), 0) :]
    return any(worker.is_ready and not worker.is_leaving for worker in staying)


def _most_to_spare(seen: Observation, count: int) -> int:
    """Return how many of these workers can be removed."""
    counts = range(min(count, seen.wanted - 1), 0, -1)
    return next((some for some in counts if can_spare(seen, some)), 0)


def grown_soon(seen: Observation) -> float:
    """Return what will be used more by the time that those that are removed have left."""
    return max(seen.growth_bytes, 0.0) * SURPLUS_SECONDS
