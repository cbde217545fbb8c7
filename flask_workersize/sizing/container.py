"""The plan that an app will have in a container of a given size, before it is there; pure.

A container starts with its limit free, the app is loaded, and the plan is made from what is left.
So what the loaded app holds is taken off first here, too. A profile is on the machine where the app
was measured, not in the image: what follows from it travels as two settings, the memory of a slot
and the headroom.
"""

from __future__ import annotations

import math

from ..resources import Resources
from .plan import MB, SizingPlan, compute_plan
from .settings import SizingSettings

STEP_MB = 16
"""A memory that is calculated is rounded up to a multiple of this, in MB."""

_ENDLESS_MB = 1 << 40


def is_built_in(settings: SizingSettings, name: str) -> bool:
    """Return whether a setting is part of the app (``app.config``), and so goes where it goes."""
    return settings.source_of(name).startswith("app.config")


def memory_of_a_slot(settings: SizingSettings) -> int:
    """Return the memory that the guide's formula has to assume, in MB, at least 1.

    The formula divides memory by it, and the quotient by the threads of a worker. So of a measured
    worker each thread stands for its part, rounded up.
    """
    threads = settings.threads or 1 if settings.wsgi_server == "gunicorn" else 1
    own = settings.memory_of_a_worker(threads)[1]
    if settings.profile and settings.wsgi_server == "waitress":
        # The threads after the first count as it does: each has to hold what one more needs.
        return max(own, math.ceil(settings.profile.costs_for("waitress").each_thread_mb))
    return math.ceil(own / threads) if settings.profile else own


def worker_mb(settings: SizingSettings, plan: SizingPlan) -> int:
    """Return what a worker of a plan for a container needs of its own, in MB.

    With a profile that is what was measured, with all threads of the worker.

    :param settings: the settings here, with the profile if there is one
    :param plan: the plan in the container, where the profile is not
    """
    if settings.profile is None:
        return plan.worker_memory_mb
    return settings.profile.costs_for(plan.server).private_mb(plan.threads)


def container_settings(settings: SizingSettings) -> SizingSettings:
    """Return the settings that the app will have in a container.

    Workers that are pinned in the environment of this machine stay here: there the size follows
    the limits. What is measured becomes settings.
    """
    sources = dict(settings.sources)
    changes: dict[str, object] = {"warnings": ()}
    if not is_built_in(settings, "workers"):
        sources.pop("workers", None)
        changes["workers"] = None
    if settings.profile:
        sources["worker_memory_mb"] = "NOW_LMS_WORKER_MEMORY_MB"
        sources["memory_headroom_percent"] = "NOW_LMS_MEMORY_HEADROOM_PERCENT"
        changes |= {"worker_memory_mb": memory_of_a_slot(settings), "profile": None}
    return settings.model_copy(update={**changes, "sources": sources})


def loaded_mb(settings: SizingSettings, held_bytes: int) -> int:
    """Return the memory that the loaded app takes before a plan is made, in MB, rounded up.

    :param settings: the settings; with a profile it is what was measured as needed once
    :param held_bytes: what this process holds, with the app loaded, in bytes
    """
    return settings.memory_of_a_worker(1)[0] if settings.profile else math.ceil(held_bytes / MB)


def container_plan(
    settings: SizingSettings, memory_mb: int, cpus: float, loaded_mb: int
) -> SizingPlan:
    """Return the plan for a container.

    :param settings: the settings here, with the profile if there is one
    :param memory_mb: its memory limit, in MB
    :param cpus: its CPUs, above 0
    :param loaded_mb: what the loaded app takes of the memory, in MB
    """
    available = max(memory_mb - loaded_mb, 0) * MB
    resources = Resources(cpus, "limit", None, memory_mb * MB, available, "limit", None)
    return compute_plan(container_settings(settings), resources)


def memory_for(settings: SizingSettings, cpus: float, loaded_mb: int) -> int:
    """Return the memory limit that lets the CPUs bind, in MB, a multiple of :data:`STEP_MB`.

    What is needed once and all that the CPU bound's workers need, with the headroom on top. It is
    what VPA and Goldilocks recommend after watching a cluster.

    :param settings: the settings, with a profile
    :param cpus: CPUs of the container
    :param loaded_mb: what is needed once, in MB
    """
    slots = container_plan(settings, _ENDLESS_MB, cpus, loaded_mb).concurrency
    needed = loaded_mb + slots * memory_of_a_slot(settings)
    needed = math.ceil(needed * 100 / (100 - settings.measured_headroom_percent))
    return -(-needed // STEP_MB) * STEP_MB
