"""What another machine, or another size, would need; pure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from ..errors import WorkerSizeConfigError
from ..resources import Resources
from .plan import MB, SizingPlan
from .settings import SizingSettings
from .validators import ServerName

_UNITS = {"k": 1024, "m": MB, "g": 1024 * MB, "t": 1024 * 1024 * MB}


def on_another_machine(resources: Resources, cpus: str | None, memory: str | None) -> Resources:
    """Return the resources with the figures of ``--cpus`` and ``--memory``, if they are given."""
    if cpus is not None:
        resources = replace(resources, cpus=parse_cpus(cpus), cpu_source="--cpus", cpu_at=None)
    if memory is not None:
        size = parse_memory(memory)
        resources = replace(resources, memory_limit=size, memory_available=size)
        resources = replace(resources, memory_source="--memory", memory_at=None)
    return resources


def parse_cpus(text: str) -> float:
    """Return a number of CPUs, above 0."""
    if re.fullmatch(r"[0-9]{0,6}\.?[0-9]{1,6}", text.strip()) and float(text) > 0:
        return float(text)
    raise WorkerSizeConfigError("--cpus is not a number above 0, such as 0.5.")


def parse_memory(text: str) -> int:
    """Return a size in bytes, written with K, M, G or T, in steps of 1024 as in the guide."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([kmgt])i?b?", text.strip().lower())
    if match is None:
        raise WorkerSizeConfigError("--memory is not a size with a unit, such as 512M or 1.5G.")
    return int(float(match[1]) * _UNITS[match[2]])


def memory_needed_mb(
    settings: SizingSettings, workers: int, threads: int | None, server: ServerName
) -> int:
    """Return the available memory that a number of workers needs, headroom included, in MB.

    The guide's formula, solved for memory and rounded up.

    :param settings: the operator's settings, and the profile, if there is one
    :param workers: how many
    :param threads: threads a worker; ``None`` for those of the settings
    :param server: the server
    """
    shared, own = settings.memory_of_a_worker(threads or settings.threads or 1, server)
    return -(-(shared + workers * own) * 100 // (100 - settings.memory_headroom_percent))


def one_more(settings: SizingSettings, plan: SizingPlan) -> dict[str, Any]:
    """Return what it would take to run one more worker, or one more thread under waitress.

    The guide's formula, solved for CPUs and for memory.

    :returns: ``what``, and of these what is not there yet: ``cpus`` and ``memory_available_mb``,
        each the least that is enough, and ``setting``, the one that holds the number down
    """
    is_waitress = plan.server == "waitress"
    counted = "thread" if is_waitress else "worker"
    more = (1, plan.threads + 1) if is_waitress else (plan.workers + 1, plan.threads)
    needed: dict[str, Any] = {"what": counted}
    if plan.limited_by == "explicit":
        needed["setting"] = plan.sources[f"{counted}s"]
        is_short = memory_needed_mb(settings, *more, plan.server) > plan.memory_available_mb
    else:
        if not is_waitress and plan.workers == settings.max_workers:
            needed["setting"] = plan.sources["max_workers"]
        # The bounds count threads, and a worker takes as many of them as it has.
        bound = plan.concurrency + (1 if is_waitress else plan.threads)
        if plan.cpu_bound < bound:
            needed["cpus"] = (bound - 1) / 2
        is_short = plan.memory_bound < bound
        if settings.profile is None:
            # The guide counts the memory of a worker for each thread.
            more = (bound, 1)
    if is_short:
        needed["memory_available_mb"] = memory_needed_mb(settings, *more, plan.server)
    return needed
