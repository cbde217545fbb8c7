"""Say what was measured, and what follows, in lines for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..sizing.advice import Advice
from ..sizing.profile import AppCosts, SizingProfile
from .load_test import Answers


def table(profile: SizingProfile) -> Iterable[str]:
    """Yield what was measured; in parentheses the least and the most that was seen."""
    how = "preloaded" if profile.preload else "not preloaded"
    yield (
        f"measured: {profile.app}, {profile.requests} requests, {profile.server}, "
        f"Python {profile.python}, {how}"
    )
    growth = f"{profile.growth_mb} MB per 1,000 requests"
    rows = {
        "shared memory": f"{profile.shared_mb} MB once, for all workers",
        "own memory at boot": f"{profile.boot_mb} MB a worker",
        "own memory when warm": f"{profile.warm_mb} MB",
        "own memory at its peak": f"{profile.peak_mb} MB",
        "memory per thread": f"{profile.thread_mb} MB",
        "growth": growth + (", and it still grows" if profile.grows else ", which may be noise"),
        "CPU time": f"{profile.cpu_ms} ms a request",
        "waiting time": f"{profile.wait_ms} ms",
    }
    for name, value in rows.items():
        yield f"  {name:<24} {value}"


def leak(profile: SizingProfile) -> Iterable[str]:
    """Yield what is to be said of a worker that grows."""
    if profile.grows:
        bound = max(int(2 * profile.warm_mb.high), int(profile.peak_mb.value)) + 1
        yield (
            "a worker still grows: it may leak. The memory guard recycles the largest before "
            "memory runs out; to bound each worker, set "
            f"NOW_LMS_WORKER_MEMORY_MAX_MB={bound}. To be surer, use more --requests."
        )


def errors(answers: Sequence[Answers]) -> Iterable[str]:
    """Yield what was answered otherwise than with a page, by path."""
    for path in dict.fromkeys(path for item in answers for path in item.statuses):
        counts = sum((item.statuses.get(path, Counter()) for item in answers), Counter[int]())
        bad = {code or "no answer": n for code, n in counts.items() if not 200 <= code < 300}
        if bad:
            told = ", ".join(f"{count} × {what}" for what, count in bad.items())
            yield f"{path} answered: {told}. These requests count as well."


def because(advice: Advice, costs: AppCosts, cpus: float) -> str:
    """Return a proposal and how it came about."""
    used = min(cpus, 1.0) if advice.server == "waitress" else cpus
    alone = " (one process)" if used < cpus else ""
    formula = (
        f"{used:g} CPU{'' if used == 1 else 's'}{alone} × (1 + {costs.wait_ms:.1f} ms waiting / "
        f"{costs.cpu_ms:.1f} ms computing) = {advice.slots:.1f} requests at once"
    )
    shape = f"{advice.workers} × {advice.threads} (workers × threads)"
    if advice.server == "waitress":
        shape = f"{advice.threads} threads in one process"
    more = ", and some to spare" if advice.workers * advice.threads > advice.slots else ""
    short = "; memory allows no more" if advice.is_short else ""
    return f"{shape}, since {formula}{more}{short}"
