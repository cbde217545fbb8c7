"""The guide's formula: settings and resources in, a plan out; pure.

The formula, in the words of the guide ("How It Works"): ``(cpu_count * 2) + 1`` by CPU,
``available_ram_mb / worker_memory_mb`` by memory, the lesser of the two, divided by the threads of
a worker, rounded down, at least 1.

If the app was measured, memory that all workers share is taken off first, and a worker counts
with its own memory at its peak, its threads included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..resources import Resources
from .settings import MEASURED, SizingSettings
from .validators import ServerName

MB = 1024 * 1024

ADVISED_SHARE = 0.8
"""Share of available memory above which a plan carries a note (guide, "Leave Headroom")."""

HIGH_SHARE = 0.5
"""Share of ``memory.high`` above which a plan carries a warning: what is planned grows."""

_MEASURED = ", measured"
"""What ends a formula whose figures were measured."""

Limit = Literal["cpu", "memory", "explicit", "min_workers", "max_workers"]


@dataclass(frozen=True)
class SizingPlan:
    """What follows from the settings and the resources; computed once per deployment.

    :param server: "gunicorn" or "waitress"
    :param workers: worker processes; 1 for waitress
    :param threads: threads a worker
    :param worker_class: "sync", "gthread", or ``None`` for waitress
    :param concurrency: requests that can run at once, ``workers × threads``
    :param worker_memory_mb: memory that one worker is assumed to need, in MB; if that was
        measured, memory of its own
    :param estimated_memory_mb: estimated total, in MB
    :param memory_available_mb: memory that was available at planning time, in MB, rounded down
    :param cpus: CPUs that were available at planning time
    :param cpu_bound: ``2 × CPUs + 1``, rounded down
    :param memory_bound: workers that fit into available memory less the headroom; if their memory
        was measured, times their threads, which share it, and for waitress the threads that fit
        into its process
    :param limited_by: which bound won
    :param sources: where each value came from, by its name
    :param warnings: what the operator should change, one sentence each
    :param notes: what the operator may want to know, one sentence each
    :param fits: whether the estimate is within available memory less the headroom
    :param shared_memory_mb: memory that is needed once, in MB; 0 if that was not measured
    :param thread_memory_mb: memory of each thread more than the first, in MB; 0 if that was not
        measured
    :param memory_headroom_percent: share of available memory that is left alone
    """

    server: ServerName
    workers: int
    threads: int
    worker_class: Literal["sync", "gthread"] | None
    concurrency: int
    worker_memory_mb: int
    estimated_memory_mb: int
    memory_available_mb: int
    cpus: float
    cpu_bound: int
    memory_bound: int
    limited_by: Limit
    sources: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fits: bool = True
    shared_memory_mb: int = 0
    thread_memory_mb: float = 0.0
    memory_headroom_percent: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, ready for JSON."""
        return {**asdict(self), "warnings": list(self.warnings), "notes": list(self.notes)}

    def __str__(self) -> str:
        """Return what was chosen and why in one line, with the numbers."""
        shape = f"{counted(self.workers, 'worker')} × {counted(self.threads, 'thread')}"
        if self.server == "waitress":
            shape = f"{counted(self.threads, 'thread')} in one process"
        return f"{self.server}: {shape} ({self.reason}), about {self.estimated_memory_mb} MB"

    @property
    def reason(self) -> str:
        """Which bound won, and the figures of both."""
        if self.limited_by == "memory":
            return f"memory: {self.memory_formula}; CPU bound {self.cpu_bound}"
        if self.limited_by == "cpu":
            return f"CPU: {self.cpu_formula} = {self.cpu_bound}; {self.memory_formula}"
        explicit = "workers" if self.server == "gunicorn" else "threads"
        source = self.sources[explicit if self.limited_by == "explicit" else self.limited_by]
        memory = f"memory bound {self.memory_bound}: {self.memory_formula}"
        return f"{source}; CPU bound {self.cpu_bound}, {memory}"

    @property
    def cpu_formula(self) -> str:
        """What ``cpu_bound`` is rounded down from."""
        return f"2 × {counted(self.cpus, 'CPU')} + 1"

    @property
    def bounds(self) -> dict[str, str]:
        """Both bounds with their numbers, by what sets them: "cpu" and "memory"."""
        memory = self.memory_formula.removesuffix(_MEASURED)
        return {
            "cpu": f"{self.cpu_formula} = {self.cpu_bound}",
            "memory": f"{memory} = {self.memory_bound}",
        }

    @property
    def memory_formula(self) -> str:
        """What ``memory_bound`` is rounded down from."""
        available, own = f"{self.memory_available_mb} MB available", f"{self.worker_memory_mb} MB"
        if self.memory_headroom_percent:
            available += f" × {100 - self.memory_headroom_percent} %"
        if self.sources["worker_memory_mb"] != MEASURED:
            return f"{available} / {own} a worker"
        left = f"{available} - {self.shared_memory_mb} MB shared"
        if self.server == "waitress":
            return f"1 + ({left} - {own}) / {self.thread_memory_mb:.4g} MB a thread{_MEASURED}"
        threads = f" × {self.threads} threads" if self.threads > 1 else ""
        return f"({left}) / {own} a worker{threads}{_MEASURED}"


def available_for(settings: SizingSettings, resources: Resources, held_bytes: int) -> Resources:
    """Return the resources that a plan is made from.

    If the app was measured, the plan takes off all that is needed once. What of it the launcher
    held already was not available any more: it would be taken off twice.
    """
    return with_held(resources, held_bytes, settings.memory_of_a_worker(1)[0])


def with_held(resources: Resources, held_bytes: int, shared_mb: int) -> Resources:
    """Count as available what is held of the memory that is needed once."""
    available = resources.memory_available + min(held_bytes, shared_mb * MB)
    return replace(resources, memory_available=min(available, resources.memory_limit))


def compute_plan(
    settings: SizingSettings, resources: Resources, server: ServerName | None = None
) -> SizingPlan:
    """Compute the plan that follows from settings and resources.

    :param settings: what the operator asked for
    :param resources: what the machine gives
    :param server: plan for this server instead of ``settings.wsgi_server``
    :returns: the plan; explicit values always win
    """
    server = server or settings.wsgi_server
    usable = resources.memory_available * (100 - settings.memory_headroom_percent) // 100
    # 2 × CPUs is exact for a float, 2 × CPUs + 1 is not.
    cpu_bound = math.floor(2 * resources.cpus) + 1
    shared, own = settings.memory_of_a_worker(
        (settings.threads or 1) if server == "gunicorn" else 1, server
    )
    memory_bound = _memory_bound(settings, usable, server)
    workers, threads, limited_by = _size(settings, cpu_bound, memory_bound, server)
    with_threads = settings.memory_of_a_worker(threads, server)[1]
    estimate = shared + workers * with_threads
    fits = estimate * MB <= usable
    misfit = _misfit(settings, resources, (workers, with_threads, shared), limited_by)
    return SizingPlan(
        server=server,
        workers=workers,
        threads=threads,
        worker_class=_worker_class(server, threads),
        concurrency=workers * threads,
        worker_memory_mb=own,
        shared_memory_mb=shared,
        thread_memory_mb=settings.profile.costs_for(server).each_thread_mb
        if settings.profile
        else 0.0,
        memory_headroom_percent=settings.memory_headroom_percent,
        estimated_memory_mb=estimate,
        memory_available_mb=resources.memory_available // MB,
        cpus=resources.cpus,
        cpu_bound=cpu_bound,
        memory_bound=memory_bound,
        limited_by=limited_by,
        sources=_sources(settings, resources, server),
        warnings=(
            *settings.warnings,
            *([] if fits else [misfit]),
            *_group_warnings(resources, estimate),
        ),
        notes=_notes(settings, estimate, resources.memory_available),
        fits=fits,
    )


def _memory_bound(settings: SizingSettings, usable: int, server: ServerName) -> int:
    """Return how many workers fit, times their threads if a worker was measured with them."""
    if settings.profile and server == "waitress":
        return settings.profile.costs_for(server).threads_within(usable // MB)
    threads = settings.threads or 1
    shared, own = settings.memory_of_a_worker(threads, server)
    workers = max(usable - shared * MB, 0) // (own * MB)
    # The guide's division by the threads, which follows, is undone.
    return workers * threads if settings.profile else workers


def _size(
    settings: SizingSettings, cpu_bound: int, memory_bound: int, server: ServerName
) -> tuple[int, int, Limit]:
    """Return workers, threads, and what bounds them."""
    threads = settings.threads or 1
    limited_by: Limit = "cpu" if cpu_bound <= memory_bound else "memory"
    bound = max(1, min(cpu_bound, memory_bound))
    if server == "waitress":
        return (1, bound, limited_by) if settings.threads is None else (1, threads, "explicit")
    if settings.workers is not None:
        return settings.workers, threads, "explicit"
    workers = max(1, bound // threads)
    if workers < settings.min_workers:
        workers, limited_by = settings.min_workers, "min_workers"
    if settings.max_workers is not None and workers > settings.max_workers:
        workers, limited_by = settings.max_workers, "max_workers"
    return workers, threads, limited_by


def _worker_class(server: ServerName, threads: int) -> Literal["sync", "gthread"] | None:
    if server == "waitress":
        return None
    return "gthread" if threads > 1 else "sync"


def _sources(settings: SizingSettings, resources: Resources, server: ServerName) -> dict[str, str]:
    sources = {name: settings.source_of(name) for name in _PLANNED}
    if settings.workers is None:
        sources["workers"] = "calculated"
    if settings.threads is None:
        sources["threads"] = "calculated" if server == "waitress" else "default"
    if server == "waitress":
        sources["workers"] = "waitress: one process"
    return {**sources, "cpus": resources.cpu_source, "memory_available_mb": resources.memory_source}


_PLANNED = (
    "workers",
    "threads",
    "worker_memory_mb",
    "min_workers",
    "max_workers",
    "memory_headroom_percent",
)


def _misfit(
    settings: SizingSettings,
    resources: Resources,
    memory: tuple[int, int, int],
    limited_by: Limit,
) -> str:
    """Return why a plan does not fit, and what to do."""
    workers, own, shared = memory
    available = f"{resources.memory_available // MB} MB available"
    if settings.memory_headroom_percent:
        available += f", {settings.memory_headroom_percent} % of it left alone"
    needed = f"{workers} × {own} MB = {shared + workers * own} MB"
    if settings.profile is not None:
        needed = f"{shared} MB shared + {needed}, as measured"
    what, remedy = "not even one worker fits", "give the machine more memory"
    if limited_by in ("explicit", "min_workers") and workers > 1:
        what = settings.source_of("workers" if limited_by == "explicit" else "min_workers")
        what, remedy = f"{what} does not fit", "lower it, or use threads, which share memory"
    elif settings.profile is None:
        remedy += ", or set NOW_LMS_WORKER_MEMORY_MB to what a worker really needs"
    elif own > settings.memory_of_a_worker(1)[1] and settings.threads is not None:
        what = "one worker with its threads does not fit"
        remedy += f", or lower {settings.source_of('threads')}"
    return f"{what}: {needed}, {available}; {remedy}."


def _group_warnings(resources: Resources, estimate_mb: int) -> Iterator[str]:
    """Yield what a control group does that is worse than the end of one worker."""
    limit_mb = resources.memory_limit // MB
    is_high = resources.memory_source.endswith(":memory.high")
    if is_high and estimate_mb > HIGH_SHARE * limit_mb:
        yield (
            f"memory.high is {limit_mb} MB, for a plan of {estimate_mb} MB: above it the kernel "
            "puts every process to sleep. Use memory.max (MemoryMax=) alone, or "
            "NOW_LMS_MEMORY_HEADROOM_PERCENT=50."
        )
    if resources.is_killed_together:
        yield (
            "memory.oom.group is set: one OOM kill ends all processes at once. Set "
            "OOMPolicy=continue in the unit, or singleProcessOOMKill for Kubernetes."
        )


def _notes(settings: SizingSettings, estimate_mb: int, available: int) -> tuple[str, ...]:
    if estimate_mb * MB <= ADVISED_SHARE * available or settings.memory_headroom_percent >= 20:
        return ()
    return (
        f"{estimate_mb} MB is above {ADVISED_SHARE:.0%} of the {available // MB} MB available; the "
        'guide advises "Leave 20-30% for OS and other processes": set '
        "NOW_LMS_MEMORY_HEADROOM_PERCENT=20.",
    )


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, as "1 worker" or "2.5 CPUs"."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
