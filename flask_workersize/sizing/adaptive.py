"""The bounds within which a size follows the load; pure.

By CPU there is no need for more workers than the guide's CPU bound, nor for more threads in one
than :data:`~flask_workersize.sizing.advice.MOST_THREADS`. What the operator has set stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .advice import MOST_THREADS
from .plan import SizingPlan, counted
from .settings import SizingSettings


class Range(NamedTuple):
    """The least and the most of a number; both the same if it does not change."""

    least: int
    most: int

    def __str__(self) -> str:
        """Return both, or the one number that it can be."""
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


@dataclass(frozen=True)
class AdaptiveBounds:
    """The bounds of an adaptive size.

    :param workers: fewest and most worker processes
    :param threads: fewest and most requests that run at once in a worker
    :param reasons: why, by "workers" and "threads"
    :param follows_cpus: whether the most workers are the CPU bound, which may change
    :param first_threads: threads per worker to begin with, if the profile has them from an earlier
        run; ``None`` to begin with the plan's
    """

    workers: Range
    threads: Range
    reasons: Mapping[str, str]
    follows_cpus: bool = False
    first_threads: int | None = None

    @property
    def slots(self) -> int:
        """Most requests that can run at once."""
        return self.workers.most * self.threads.most

    def __str__(self) -> str:
        """Return the bounds in a few words."""
        first = f", beginning with {self.first_threads}" if self.first_threads else ""
        return f"adapts: {self.ranges}{first}"

    @property
    def ranges(self) -> str:
        """The bounds alone: "1 to 5 workers × 1 to 64 threads"."""
        threads = f"{self.threads} threads"
        return threads if self.workers.most == 1 else f"{self.workers} workers × {threads}"


def begins(plan: SizingPlan, bounds: AdaptiveBounds | None) -> str:
    """Return the line of a start: the plan, and that its size follows the load, if it does."""
    return f"{plan}; {bounds}" if bounds else str(plan)


def adaptive_bounds(
    settings: SizingSettings, plan: SizingPlan, pool: int | None = None
) -> AdaptiveBounds | None:
    """Return the bounds within which the size follows the load.

    :param settings: what the operator asked for
    :param plan: the plan that the server begins with
    :param pool: connections that the smallest database pool of a worker allows; ``None`` if there
        is no pool, or no end to it
    :returns: ``None`` if the size is that of the plan
    """
    if settings.sizing != "adaptive":
        return None
    workers, why_workers = _workers(settings, plan)
    threads, why_threads = Range(1, MOST_THREADS), "more have no CPU to run on"
    if pool is not None and pool < MOST_THREADS:
        threads = Range(1, max(pool, 1))
        why_threads = f"the database pool of a worker has {counted(pool, 'connection')}"
    if plan.server == "gunicorn" and settings.threads is not None:
        threads, why_threads = Range(plan.threads, plan.threads), settings.source_of("threads")
    reasons = {"workers": why_workers, "threads": why_threads}
    found = settings.profile.found_threads if settings.profile else None
    first = min(max(found, threads.least), threads.most) if found else None
    return AdaptiveBounds(
        workers,
        threads,
        reasons,
        follows_cpus=why_workers.startswith(_BY_CPU),
        first_threads=None if first == plan.threads else first,
    )


_BY_CPU = "CPU bound"


def _workers(settings: SizingSettings, plan: SizingPlan) -> tuple[Range, str]:
    if plan.server == "waitress":
        return Range(1, 1), "waitress: one process"
    if settings.workers is not None:
        return Range(plan.workers, plan.workers), settings.source_of("workers")
    if settings.max_workers is not None and settings.max_workers < plan.cpu_bound:
        most, why = settings.max_workers, settings.source_of("max_workers")
    else:
        most, why = plan.cpu_bound, f"{_BY_CPU}: {plan.cpu_formula}"
    return Range(1, max(most, plan.workers)), why


def most_connections(pool: Any) -> float:
    """Return how many connections a pool of SQLAlchemy allows; infinity if it has no end."""
    # There is no public name for the overflow. Below 0 it has no end, as has a size of 0.
    size, overflow = pool.size(), pool._max_overflow
    return math.inf if overflow < 0 or size == 0 else size + overflow


def pool_size(engines: list[Any]) -> int | None:
    """Return how many connections the smallest pool of SQLAlchemy allows.

    :param engines: the engines of the app
    :returns: ``None`` if no pool ends
    """
    pools = [engine.pool for engine in engines if hasattr(engine.pool, "checkedin")]
    least = min(map(most_connections, pools), default=math.inf)
    return None if least == math.inf else int(least)
