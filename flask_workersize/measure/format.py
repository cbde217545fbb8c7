"""Measurements and recommendations, in lines for a person."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..sizing.advice import Advice
from ..sizing.plan import counted
from ..sizing.profile import AppCosts, SizingProfile
from .load_test import SUCCESS, Answers

ARENAS = "MALLOC_ARENA_MAX"
"""The variable that bounds the heaps of glibc: up to eight for each CPU without it (mallopt(3))."""

THREAD_MB = 4.0
"""Memory of a thread above which these heaps are the likely cause, in MB."""


def table(profile: SizingProfile) -> Iterable[str]:
    """Yield the measurements; the parentheses show the lowest and highest values."""
    made_with = f"{profile.server}, Python {profile.python}"
    how = "preloaded" if profile.preload else "not preloaded"
    yield f"measured: {profile.app}, {profile.requests} requests, {made_with}, {how}"
    growth = f"{profile.growth_mb} MB per 1,000 requests"
    rows = {
        "shared memory": f"{profile.shared_mb} MB once, for all workers",
        **({"shared, waitress": f"{profile.alone_mb} MB"} if profile.alone_mb else {}),
        "own memory at boot": f"{profile.boot_mb} MB a worker",
        "own memory when warm": f"{profile.warm_mb} MB",
        "own memory at its peak": f"{profile.peak_mb} MB",
        "memory per thread": f"{profile.thread_mb} MB",
        "growth": growth + (", still growing" if profile.grows else ", which may be noise"),
        "CPU time": f"{profile.cpu_ms} ms a request",
        "waiting time": f"{profile.wait_ms} ms",
    }
    for name, value in rows.items():
        yield f"  {name:<24} {value}"


def leak(profile: SizingProfile) -> Iterable[str]:
    """Yield a warning if a worker grows."""
    if profile.grows:
        bound = max(int(2 * profile.warm_mb.high), int(profile.peak_mb.value)) + 1
        yield (
            "a worker is still growing, perhaps from a leak. To bound each worker, set "
            f"NOW_LMS_WORKER_MEMORY_MAX_MB={bound}; for more certainty, use more --requests."
        )


def arenas(profile: SizingProfile, environ: Mapping[str, str]) -> Iterable[str]:
    """Yield a note if threads need so much that glibc may keep a heap for each (mallopt(3))."""
    each_mb = profile.thread_mb.value
    is_glibc = platform.libc_ver()[0] == "glibc"
    if each_mb > THREAD_MB and is_glibc and ARENAS not in environ:
        yield (
            f"each thread needs {each_mb:.0f} MB: glibc may keep a heap for each. Set {ARENAS}=2 "
            "for the server and measure again."
        )


def errors(answers: Sequence[Answers]) -> Iterable[str]:
    """Yield the failed answers, by path and status."""
    counts = sum((item.counts for item in answers), Counter[tuple[str, int]]())
    for (path, status), count in counts.items():
        if status not in SUCCESS:
            what = f"{count} × {status or 'no answer'}"
            yield f"{path} answered: {what}. These requests count as well."


def recommendation(advice: Advice, costs: AppCosts, cpus: float) -> Iterable[str]:
    """Yield the recommended settings, and how they were calculated."""
    shape = f"{advice.workers} × {advice.threads} (workers × threads)"
    used = counted(cpus, "CPU")
    if advice.server == "waitress":
        shape = f"{advice.threads} threads in one process"
        used = counted(min(cpus, 1.0), "CPU") + " (one process)"
    times = f"1 + {costs.wait_ms:.1f} ms waiting / {costs.cpu_ms:.1f} ms computing"
    more = ", plus headroom" if advice.workers * advice.threads > advice.slots else ""
    short = "; memory allows no more" if advice.is_short else ""
    formula = f"{used} × ({times}) = {advice.slots:.1f} concurrent requests"
    yield f"Recommended settings: {shape}, since {formula}{more}{short}"
    yield from (f"  {line}" for line in advice.dotenv_lines())
