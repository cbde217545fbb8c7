"""Advice about what the report shows, in plain words; pure.

Requests that wait need more slots if CPU is left, and more CPU if not. When all slots are busy, an
app uses ``slots × computing time / time that a request runs`` CPUs. If that is as much as there is,
more slots would only share it: the same comparison, of slots with CPUs × (1 + waiting / computing),
sizes the threads in :mod:`flask_workersize.sizing.advice`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..runtime.deployment import Deployment
from ..runtime.history import Past, Stretch
from ..runtime.snapshot import GuardState, Snapshot
from ..sizing.advice import MOST_THREADS, SPARE
from ..sizing.plan import MB
from ..sizing.settings import MEASURED
from .measured import MeasuredReport

LONG_SECONDS = 30.0
"""How long a request has run that something seems to hold up."""

WAITED_SHARE = 0.01
"""Share of the requests of a minute that have to have waited, and at least :data:`LEAST_WAITED`."""

LEAST_WAITED = 3

CROWDED_SHARE = 0.05
"""Share of the hour in which requests have to have waited, unless they do now."""

SETTLED_MINUTES = 10
"""After so many minutes in which requests waited a size that follows the load has tried what it
can: it moves once a minute at most, and steps back from what does not help."""

BUSY_SHARE = 0.95
"""Share of the slots from which all are busy, if it is not known how long requests wait."""

FULL_SHARE = 0.85
"""Share of the CPUs from which they are full when all slots are busy: a second is never used up."""

NEARLY_FULL_SHARE = 0.9
"""Share of the memory limit from which there is hardly any left."""


def next_steps(
    deployment: Deployment, now: Snapshot, past: Past, measured: MeasuredReport | None = None
) -> list[str]:
    """Return what to do, most urgent first; empty if there is nothing to do.

    :param deployment: the decisions of the start
    :param now: live figures
    :param past: figures of the last hour
    :param measured: measured costs of the app; ``None`` before there are enough
    :returns: each step in one line
    """
    if now.is_leaving:
        return []
    hour = past.hour
    return [
        *(_killed(deployment, now, hour) if hour else ()),
        *_memory(deployment, now),
        *_long(now),
        *_crowded(deployment, now, past, measured),
        *(_crashed(hour) if hour else ()),
        *_misfit(deployment),
        *(_grown(now, hour) if hour else ()),
    ]


def _killed(deployment: Deployment, now: Snapshot, hour: Stretch) -> Iterator[str]:
    if count := hour.counted.oom_kills:
        what = "1 process was" if count == 1 else f"{count} processes were"
        remedy = _more_memory(deployment, now)
        if now.guard is GuardState.OFF:
            remedy = "set NOW_LMS_MEMORY_GUARD=on, or give it more memory"
        yield f"{what} OOM-killed in the {_span(hour)}: {remedy}"


def _memory(deployment: Deployment, now: Snapshot) -> Iterator[str]:
    limit, used = (now.stored[f"memory_{name}_bytes"] // MB for name in ("limit", "used"))
    short = f"memory is short, {used} of {limit} MB in use"
    if now.guard >= GuardState.WARN:
        yield f"{short}, and recycling workers does not help: {_more_memory(deployment, now)}"
    elif now.guard is GuardState.REDUCED:
        what = "memory is too small for the plan, so workers were removed"
        yield f"{what}: {_more_memory(deployment, now)}"
    elif now.guard is GuardState.OFF and limit and used >= NEARLY_FULL_SHARE * limit:
        yield f"{short}: set NOW_LMS_MEMORY_GUARD=on, or give it more memory"


def _more_memory(deployment: Deployment, now: Snapshot) -> str:
    """Return the remedy for a plan that is too large, with the number that the log has, too."""
    if deployment.plan.server == "waitress" or now.wanted == 1:
        return "give it more memory"
    fewer = f"NOW_LMS_WORKERS={now.workers_advised}" if now.workers_advised else "fewer workers"
    return f"set {fewer}, or give it more memory"


def _long(now: Snapshot) -> Iterator[str]:
    long = [ran for row in now.workers for ran in row.running_seconds if ran > LONG_SECONDS]
    if len(long) == 1:
        what, remedy = f"a request has been running for {long[0]:.0f} s", "what it waits for"
        yield f"{what}: find {remedy}, or move it to a background job"
    elif long:
        what = f"{len(long)} requests have been running for more than {LONG_SECONDS:.0f} s"
        what += f", the longest for {max(long):.0f} s"
        yield f"{what}: find what they wait for, or move them to a background job"


def _crowded(
    deployment: Deployment, now: Snapshot, past: Past, measured: MeasuredReport | None
) -> Iterator[str]:
    """Yield what to do about requests that waited, were turned away or were abandoned."""
    minutes, hour = past.minutes, past.hour
    if not minutes or not hour:
        return
    crowded = [minute for minute in minutes if _is_crowded(minute)]
    turned_away, gave_up = hour.counted.shed, hour.counted.refused - hour.counted.shed
    share = sum(minute.seconds for minute in crowded) / hour.seconds
    is_now = any(map(_is_crowded, minutes[-2:]))
    if turned_away:
        what = f"{_requests(turned_away)} turned away in the {_span(hour)}"
    elif gave_up:
        what = f"{_requests(gave_up)} abandoned by waiting clients in the {_span(hour)}"
    elif crowded and (is_now or share >= CROWDED_SHARE):
        is_known = any(minute.counted.waited for minute in crowded)
        who = "requests waited" if is_known else "all slots were busy"
        what = f"{who} in {max(share, 0.01):.0%} of the {_span(hour)}".replace("%", " %")
    else:
        return
    latest = minutes[-SETTLED_MINUTES:]
    is_settled = len(latest) == SETTLED_MINUTES and all(map(_is_crowded, latest))
    yield f"{what}{_remedy(deployment, now, crowded or minutes, measured, is_settled)}"


def _requests(count: int) -> str:
    return "1 request was" if count == 1 else f"{count} requests were"


def _is_crowded(minute: Stretch) -> bool:
    if not minute.counted.queued:
        return minute.utilization >= BUSY_SHARE
    return minute.counted.waited >= max(WAITED_SHARE * minute.requests, LEAST_WAITED)


def _remedy(
    deployment: Deployment,
    now: Snapshot,
    minutes: Sequence[Stretch],
    measured: MeasuredReport | None,
    is_settled: bool,
) -> str:
    """Return what helps requests that waited in these minutes, as the end of a sentence.

    :param is_settled: whether a size that follows the load has had the time for it
    """
    plan, workers = deployment.plan, max(len(now.ready), 1)
    cpus = now.cpus or plan.cpus
    # One process computes on one CPU at a time.
    usable = min(cpus, workers)
    busy = sum(minute.counted.busy_ns for minute in minutes)
    # Waiting for a CPU counts as demand for one.
    cpu = sum(minute.counted.cpu_ns + minute.counted.cpu_wait_ns for minute in minutes)
    computing = min(cpu / busy, 1.0) if busy else 0.0
    # Those that there were then: a size that follows the load has others by now.
    time = sum(minute.counted.at_ns for minute in minutes)
    slots = sum(minute.counted.slot_ns for minute in minutes) / time
    if slots * computing >= FULL_SHARE * usable:
        return _more_cpu(deployment, now, cpus, workers, is_settled)
    if deployment.bounds is not None:
        if now.slots < now.slots_most:
            return _SETTLED if is_settled else _FOLLOWS
        return ", and the size is at its upper bound: add a replica"
    if lines := _better(deployment, now, measured):
        more = " and ".join(lines)
    elif computing:
        threads = math.ceil(SPARE * usable / computing / workers)
        more = f"NOW_LMS_THREADS={min(threads, MOST_THREADS)}"
        if threads <= plan.threads or plan.threads >= MOST_THREADS:
            return " while CPU was left: add a replica"
    else:
        more = "more NOW_LMS_THREADS"
    return f" while CPU was left: set {more}, or NOW_LMS_SIZING=adaptive"


_FOLLOWS = ": the size follows the load, there is nothing to do yet"
_SETTLED = (
    f", and in {SETTLED_MINUTES} minutes the size has not followed: give it more memory, or add a "
    "replica"
)


def _more_cpu(
    deployment: Deployment, now: Snapshot, cpus: float, workers: int, is_settled: bool
) -> str:
    """Return what helps where slots compute as much as they can."""
    plan = deployment.plan
    if workers >= cpus:
        return " with the CPUs full: add a replica, or CPUs"
    if plan.server == "waitress":
        return (
            " with one CPU full, and one process cannot use more: set "
            "NOW_LMS_WSGI_SERVER=gunicorn, or add a replica"
        )
    full = f" with {'1 worker' if workers == 1 else f'{workers} workers'} computing all the time"
    if plan.limited_by == "memory" or now.guard >= GuardState.REDUCED:
        is_measured = plan.sources["worker_memory_mb"] == MEASURED
        measure = "" if is_measured else ", or flask workersize measure to see what a worker needs"
        return f"{full}, and no memory for more: give it more memory{measure}"
    if deployment.bounds is not None and workers < deployment.bounds.workers.most:
        return full + (_SETTLED if is_settled else _FOLLOWS)
    return f"{full} on {cpus:g} CPUs: set NOW_LMS_WORKERS={math.ceil(cpus)}, or add a replica"


def _better(deployment: Deployment, now: Snapshot, measured: MeasuredReport | None) -> list[str]:
    """Return the lines that what was measured recommends, if they mean more slots than now."""
    if measured is None:
        return []
    plan = deployment.plan
    names = ("WORKERS", "THREADS")
    lines = [line.partition("=") for line in measured.advice]
    asked = {name: int(value) for name, _, value in lines if name.endswith(names)}
    workers = asked.get("NOW_LMS_WORKERS", plan.workers)
    if workers * asked["NOW_LMS_THREADS"] <= now.slots:
        return []
    same = {"NOW_LMS_WORKERS": plan.workers, "NOW_LMS_THREADS": plan.threads}
    return [f"{name}={value}" for name, value in asked.items() if value != same[name]]


def _crashed(hour: Stretch) -> Iterator[str]:
    count = hour.counted.crashed - hour.counted.oom_kills
    if count > 0:
        what = "1 worker" if count == 1 else f"{count} workers"
        yield f"{what} crashed or got killed in the {_span(hour)}: see the log for the reason"


def _misfit(deployment: Deployment) -> Iterator[str]:
    plan = deployment.plan
    if not plan.fits:
        fewer = "give it more memory"
        if plan.server == "gunicorn" and plan.workers > 1:
            fewer = "set fewer workers, or give it more memory"
        needed, available = plan.estimated_memory_mb, plan.memory_available_mb
        yield f"the plan needs {needed} MB, and {available} MB were available: {fewer}"


def _grown(now: Snapshot, hour: Stretch) -> Iterator[str]:
    count = hour.counted.recycled
    if count > max(len(now.workers), 1):
        what = f"{count} workers were recycled in the {_span(hour)} because they had grown"
        yield f"{what}: no request was lost, but find out what the app keeps in memory"


def _span(stretch: Stretch) -> str:
    """Return "last hour", or how much of it was seen."""
    minutes = round(stretch.seconds / 60)
    if minutes >= 58:
        return "last hour"
    return "last minute" if minutes <= 1 else f"last {minutes} minutes"
