"""The numbers of an export, each with its reason; pure.

One function a rule, so that manifests of others can be held against the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import NamedTuple

from ..sizing.adaptive import AdaptiveBounds, adaptive_bounds, begins
from ..sizing.container import container_plan, container_settings, is_built_in
from ..sizing.fleet import CPU_SHARE, cpu_at_saturation
from ..sizing.plan import SizingPlan, counted
from .intent import Intent

PORT, HEALTH_PORT = 8080, 8081
"""Ports of the app and of the health port in everything that is exported."""

USER = 10001
"""User and group of the container: neither root nor one that a host tends to have."""

GRACE_SPARE = 5
"""Seconds on top of drain and graceful timeout, for processes to end."""

CLOUD_RUN_SECONDS = 10
"""How long Cloud Run waits after SIGTERM before it kills, in seconds; it cannot be set."""

LEAST_CPU_SHARE = 0.4
"""Share of the CPUs at saturation below which CPU time says too little about load."""

MOST_CLOUD_RUN_REQUESTS = 1000
"""Most requests that Cloud Run sends to a replica at once."""

_MOST_CLOUD_RUN_SECONDS = 3600
_EVERYWHERE = "0.0.0.0"
_FIRST_ADDRESS = IPv4Address("10.0.0.11")


class Variable(NamedTuple):
    """A variable of the container's environment, and why it is set."""

    name: str
    value: str
    why: str


class Because(NamedTuple):
    """A derived number, as it is written, and why it is that."""

    value: str
    why: str

    def __str__(self) -> str:
        """Return what is written."""
        return self.value


def plan_of(intent: Intent) -> SizingPlan:
    """Return the plan that each replica will have."""
    return container_plan(intent.settings, intent.memory_mb, intent.cpus, intent.loaded_mb)


def bounds_of(intent: Intent) -> AdaptiveBounds | None:
    """Return the bounds of the size of each replica; ``None`` if it does not follow the load."""
    return adaptive_bounds(container_settings(intent.settings), plan_of(intent), intent.pool)


def slots(intent: Intent) -> Because:
    """Return how many requests a balancer may send to a replica at once, as text.

    It is what the plan serves at once: what is more waits in the balancer, where it gets the next
    slot that is free in any replica, and not behind a busy one. If the size follows the load, it is
    the most that there can be: with fewer, the slots that are added would get no requests.
    """
    plan, bounds = plan_of(intent), bounds_of(intent)
    if bounds:
        most = counted(bounds.threads.most, "thread")
        if plan.server == "gunicorn":
            most = f"{counted(bounds.workers.most, 'worker')} × {most}"
        return Because(str(bounds.slots), f"slots at most, since the size follows the load: {most}")
    shape = f"{counted(plan.workers, 'worker')} × {counted(plan.threads, 'thread')}"
    if plan.server == "waitress":
        shape = f"{counted(plan.threads, 'thread')} in one process"
    return Because(str(plan.concurrency), f"slots of the plan: {shape}")


def grace_seconds(drain_seconds: int, graceful_seconds: int) -> int:
    """Return how long to wait before SIGKILL, in seconds: longer than a whole stop."""
    return drain_seconds + graceful_seconds + GRACE_SPARE


def grace(intent: Intent) -> Because:
    """Return the same for a replica."""
    drain, graceful = intent.drain_seconds, intent.settings.graceful_timeout
    return Because(
        str(grace_seconds(drain, graceful)),
        f"above the stop: drain {drain} s + graceful timeout {graceful} s",
    )


def memory(intent: Intent) -> Because:
    """Return the memory limit in MB."""
    plan = plan_of(intent)
    own = f"{intent.loaded_mb} MB loaded + {plan.workers} × {plan.worker_memory_mb} MB"
    if plan.server == "gunicorn" and intent.settings.profile:
        own = f"{intent.loaded_mb} MB shared + {plan.concurrency} × {plan.worker_memory_mb} MB"
    if plan.memory_headroom_percent:
        own += f", {plan.memory_headroom_percent} % headroom"
    return Because(str(intent.memory_mb), f"{intent.memory_why}; the plan needs {own}")


def cpus(intent: Intent) -> Because:
    """Return the CPUs, as Docker and Kubernetes both read them."""
    bound = f"2 × {intent.cpus:g} CPUs + 1 = {plan_of(intent).cpu_bound} bounds the slots"
    return Because(f"{intent.cpus:g}", f"{intent.cpus_why}; {bound}")


def cpu_percent(cpus: float) -> int:
    """Return CPUs as a quota of systemd, in % of one CPU."""
    return max(1, round(100 * cpus))


def keda_target(slots: int) -> str:
    """Return the busy slots a replica that KEDA should aim at: 70 % of them."""
    return f"{CPU_SHARE * slots:.1f}"


class CpuTarget(NamedTuple):
    """The CPU target of an autoscaler.

    :param percent: of the CPUs that a replica requests
    :param saturation: share of them that it uses when all slots are busy; ``None`` if not measured
    """

    percent: int
    saturation: float | None

    @property
    def is_low(self) -> bool:
        """Whether CPU time says too little about the load of this app."""
        return self.saturation is not None and self.saturation < LEAST_CPU_SHARE


def cpu_target(intent: Intent) -> CpuTarget:
    """Return 70 % of the CPU that a replica uses when all its slots are busy.

    A target above what it uses then would never be reached, however many requests wait.
    """
    profile, plan = intent.settings.profile, plan_of(intent)
    if profile is None:
        return CpuTarget(int(100 * CPU_SHARE), None)
    most = int(slots(intent).value)
    share = cpu_at_saturation(plan, profile.costs_for(plan.server), most)
    return CpuTarget(max(1, math.floor(round(100 * CPU_SHARE * share, 6))), share)


def cpu_target_why(target: CpuTarget) -> str:
    """Return why the target is that."""
    if target.saturation is None:
        return "70 % is a guess: flask workersize measure shows what this app can reach"
    return f"70 % of the {target.saturation:.0%} that it uses when all slots are busy"


def check_seconds(drain_seconds: int) -> int:
    """Return the time between two ready checks that both fail within a drain, in seconds: 1 or 2.

    A balancer that takes two failures then knows before the server stops.
    """
    return 2 if drain_seconds > 2 * 2 else 1


def response_seconds(timeout: int) -> int:
    """Return how long a balancer waits for a response, in seconds: longer than the server."""
    return timeout + GRACE_SPARE if timeout else 3600


def connections(slots: int, replicas: int) -> int:
    """Return how many connections a balancer takes at once: five for each slot of the fleet.

    Few enough for the descriptors that a process tends to be allowed, or it does not start.
    """
    return max(2000, 5 * slots * replicas)


def blocks_drains(
    replicas: int, max_unavailable: int | None = None, min_available: int | None = None
) -> bool:
    """Return whether a PodDisruptionBudget keeps every node that has a replica from being drained.

    :param replicas: replicas that there are at least
    :param max_unavailable: how many of them may be away
    :param min_available: how many of them have to be there
    """
    if max_unavailable is not None:
        return max_unavailable < 1
    return min_available is not None and min_available >= replicas


def environment(intent: Intent) -> Iterator[Variable]:
    """Yield the variables that a replica needs, wherever it runs."""
    here, there = intent.settings, container_settings(intent.settings)
    yield Variable("NOW_LMS_WSGI_SERVER", here.wsgi_server, "the plan is for this server")
    yield Variable("NOW_LMS_HEALTH_PORT", str(HEALTH_PORT), "probes and metrics; never published")
    drain, graceful = intent.drain_seconds, here.graceful_timeout
    if drain or is_built_in(here, "drain_seconds"):
        why = "keeps serving after SIGTERM until balancers notice"
        yield Variable("NOW_LMS_DRAIN_SECONDS", str(drain), why)
    yield Variable(
        "NOW_LMS_GRACEFUL_TIMEOUT", str(graceful), "then running requests have this long to finish"
    )
    for name, value in (("host", _EVERYWHERE), ("port", PORT), ("health_host", _EVERYWHERE)):
        if is_built_in(here, name) or (name == "port" and is_built_in(here, "bind")):
            yield Variable(f"NOW_LMS_{name.upper()}", str(value), "overrides the app's own")
    for name in ("sizing", "threads", "min_workers", "max_workers", "timeout", "worker_memory_mb"):
        is_set = here.source_of(name) not in ("default", "measured")
        if is_set and not is_built_in(here, name) and getattr(here, name) is not None:
            yield Variable(f"NOW_LMS_{name.upper()}", str(getattr(here, name)), "as set here")
    if not here.preload and not is_built_in(here, "preload"):
        yield Variable("NOW_LMS_PRELOAD", "off", "as set here")
    percent = str(there.memory_headroom_percent)
    if here.profile:
        why = f"measured: a worker's own memory at its peak{_per_thread(intent)}"
        yield Variable("NOW_LMS_WORKER_MEMORY_MB", str(there.worker_memory_mb), why)
        yield Variable(
            "NOW_LMS_MEMORY_HEADROOM_PERCENT",
            percent,
            "measured numbers include no reserve",
        )
    elif there.memory_headroom_percent:
        yield Variable("NOW_LMS_MEMORY_HEADROOM_PERCENT", percent, "as set here")


def _per_thread(intent: Intent) -> str:
    threads = plan_of(intent).threads if intent.settings.wsgi_server == "gunicorn" else 1
    return f", for each of its {threads} threads" if threads > 1 else ""


def addresses(intent: Intent) -> list[str]:
    """Return an address for each replica, to be replaced by the real ones."""
    return [str(_FIRST_ADDRESS + number) for number in range(intent.replicas.high)]


def reasons(intent: Intent) -> Iterator[str]:
    """Yield what the head of each file says: what it was made from."""
    bounds = bounds_of(intent)
    yield f"{begins(plan_of(intent), bounds)}, by flask-workersize"
    if intent.settings.profile is None:
        yield "Memory of a worker is assumed, not measured: run flask workersize measure."
    if bounds:
        yield "The size follows the load within these bounds, and the limits when they change."
    elif plan_of(intent).server == "gunicorn":
        yield "NOW_LMS_WORKERS is not set: the number of workers follows the limits."
    else:
        yield "The number of threads follows the limits that hold when waitress starts."


def without_drain(intent: Intent) -> Intent:
    """Return the intent for where nothing has to notice that a replica stops."""
    return replace(intent, drain_seconds=0)


def on_cloud_run(intent: Intent) -> Intent:
    """Return the intent with a stop that fits into Cloud Run's fixed grace.

    It routes no request to a replica that it has sent SIGTERM, so that no drain is needed.
    """
    graceful = min(intent.settings.graceful_timeout, CLOUD_RUN_SECONDS - 2)
    settings = intent.settings.model_copy(update={"graceful_timeout": graceful})
    return without_drain(replace(intent, settings=settings))


def cloud_run_concurrency(slots: int) -> int:
    """Return the slots, as far as Cloud Run uses them."""
    return min(slots, MOST_CLOUD_RUN_REQUESTS)


def cloud_run_timeout(intent: Intent) -> int:
    """Return how long Cloud Run lets a request run, in seconds."""
    return min(intent.settings.timeout or _MOST_CLOUD_RUN_SECONDS, _MOST_CLOUD_RUN_SECONDS)
