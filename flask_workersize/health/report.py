"""CapacityReport: what a deployment can carry, for probes and people."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from ..runtime.deployment import Deployment
from ..runtime.figures import LiveFigures, live_figures
from ..runtime.history import Past
from ..runtime.queue_times import QueueTotals
from ..runtime.snapshot import GuardState, Snapshot, WorkerStats
from ..sizing.plan import MB, Limit, SizingPlan
from ..sizing.validators import ServerName
from .advice import next_steps
from .history import PastReport, past_figures
from .measured import MeasuredReport

_NO_PAST = Past()


class WorkerReport(BaseModel):
    """One worker in the report."""

    model_config = ConfigDict(frozen=True)

    pid: int = Field(ge=0, description="process id; 0 right after the fork")
    age_seconds: float = Field(ge=0, description="time since it was started")
    ready: bool = Field(description="whether it has loaded the app")
    silent_seconds: float = Field(ge=0, description="time since its main loop last ran")
    slots: int = Field(ge=1, description="requests it can run at once")
    busy: int = Field(ge=0, description="slots in use, by a running request or a slow client")
    running_seconds: float = Field(
        ge=0, description="how long the longest of them has been running"
    )
    served: int = Field(ge=0, description="requests it has served")
    busy_seconds: float = Field(ge=0, description="time its threads spent on them, in total")
    cpu_seconds: float = Field(
        ge=0, description="CPU time spent on them, including the server's part"
    )
    rss_mb: float | None = Field(
        description="resident memory, in MB, including shared pages; null until it is sampled"
    )
    pss_mb: float | None = Field(
        description="the same with shared pages divided among their processes; null if not reported"
    )
    uss_mb: float | None = Field(description="private memory, in MB; null if not reported")
    first_mb: float | None = Field(description="private memory when it became ready, in MB")
    warm_mb: float | None = Field(description="private memory once its caches were full, in MB")
    peak_mb: float | None = Field(description="its highest private memory so far, in MB")
    memory_age_seconds: float | None = Field(description="time since memory was sampled")
    memory_served: int | None = Field(description="requests it had served at that time")

    @classmethod
    def of(cls, row: WorkerStats) -> WorkerReport:
        """Make the report of a worker."""
        memory = row.memory
        kinds = ("rss", "pss", "uss", "first", "warm", "peak")
        sizes = {kind: getattr(memory, f"{kind}_bytes", None) for kind in kinds}
        return cls(
            pid=row.pid,
            age_seconds=round(row.lived_seconds, 3),
            ready=row.is_ready,
            silent_seconds=round(row.silent_seconds, 3),
            slots=row.slots,
            busy=row.busy,
            running_seconds=round(max(row.running_seconds, default=0.0), 3),
            served=row.served,
            busy_seconds=round(row.busy_ns / 1e9, 6),
            cpu_seconds=round(row.cpu_ns / 1e9, 6),
            memory_age_seconds=memory and round(memory.age_seconds, 3),
            memory_served=memory and memory.served,
            **{f"{kind}_mb": size and round(size / MB, 3) for kind, size in sizes.items()},
        )


class Bounds(BaseModel):
    """The two bounds of the plan, and what an adaptive size moves within."""

    model_config = ConfigDict(frozen=True)

    cpu: str = Field(description="the CPU bound, with its numbers")
    memory: str = Field(description="the memory bound, with its numbers")
    adapts: str | None = Field(
        None, description="range of workers and threads if the size follows the load"
    )


class PlanReport(BaseModel):
    """What was planned."""

    model_config = ConfigDict(frozen=True)

    status: Literal["pass", "warn"] = Field(
        description='"warn" if the plan does not fit into memory, or the memory guard cannot help'
    )
    serving: bool = Field(
        description="whether this app is served under the plan; false if flask-workersize did not "
        "launch this process"
    )
    server: ServerName = Field(description="the WSGI server")
    workers: int = Field(ge=1, description="worker processes; 1 for waitress")
    threads: int = Field(ge=1, description="threads a worker")
    concurrency: int = Field(ge=1, description="requests that can run at once, workers × threads")
    worker_class: Literal["sync", "gthread"] | None = Field(
        description="gunicorn's worker class; null for waitress"
    )
    limited_by: Limit = Field(description="which bound set the size")
    worker_memory_mb: int = Field(
        ge=1,
        description="memory each worker is assumed to need, in MB; if measured, without what all "
        "workers share",
    )
    shared_memory_mb: int = Field(
        ge=0, description="memory that all workers share, in MB; 0 if not measured"
    )
    estimated_memory_mb: int = Field(ge=1, description="estimated total memory, in MB")
    memory_available_mb: int = Field(ge=0, description="memory available at planning time, in MB")
    cpus: float = Field(gt=0, description="CPUs available at planning time")
    why: Bounds = Field(
        description="both bounds, as formulas; limited_by says which one set the size"
    )


class CapacityReport(PastReport, LiveFigures, PlanReport):
    """The body of ``/_health/capacity``.

    It contains no path, no host name, no version and no environment value except numbers that
    size and time the server. ``sources``, ``warnings``, ``notes``, ``pid``, ``processes`` and
    ``measured`` are only there with the token. The live figures, from ``workers_alive`` to
    ``advice``, are there if flask-workersize serves the app: on the port of the app with the token,
    on the health port for everyone.
    """

    queue_totals: Annotated[QueueTotals | None, SkipJsonSchema()] = Field(None, exclude=True)
    """What the metrics have a histogram of."""

    processes: list[WorkerReport] | None = Field(
        None, description="with the token: each worker, in no particular order"
    )
    measured: MeasuredReport | None = Field(
        None, description="with the token: what the app costs, and recommended settings"
    )
    sources: dict[str, str] | None = Field(
        None, description="with the token: where each value came from"
    )
    warnings: list[str] | None = Field(None, description="with the token: what to change")
    notes: list[str] | None = Field(
        None, description="with the token: notes from detection and planning"
    )
    pid: int | None = Field(None, description="with the token: the process that answered")

    @classmethod
    def of(  # noqa: PLR0913
        cls,
        plan: SizingPlan,
        *,
        serving: bool,
        detection_notes: Iterable[str] = (),
        details: bool = False,
        now: Snapshot | None = None,
        past: Past = _NO_PAST,
        deployment: Deployment | None = None,
        measured: MeasuredReport | None = None,
    ) -> CapacityReport:
        """Make the report for a plan.

        :param plan: the plan of the app
        :param serving: whether the app is served under it
        :param detection_notes: notes of the detection, "class: detail"
        :param details: whether to include the fields that need the token
        :param now: live figures, if they may be shown
        :param past: figures of the last hour, if they may be shown
        :param deployment: the decisions of the start, for the advice
        :param measured: measured costs of the app; ``None`` before there are enough
        :returns: the report; omitted fields are unset
        """
        planned = PlanReport.model_fields
        shown = {name: value for name, value in vars(plan).items() if name in planned}
        limits = deployment.bounds if deployment else None
        shown["why"] = Bounds(**plan.bounds, **({"adapts": limits.ranges} if limits else {}))
        if now is not None:
            timeout = deployment.settings.timeout or None if deployment else None
            advice = next_steps(deployment, now, past, measured) if deployment else []
            shown |= {**live_figures(now), "queue_totals": now.queue_totals}
            shown |= past_figures(now, past, timeout, advice)
            shown["memory_recycle_percent"] = _recycle_percent(deployment)
            if details:
                shown["processes"] = [WorkerReport.of(worker) for worker in now.workers]
                shown["measured"] = measured
        if details:
            shown |= {
                "sources": dict(plan.sources),
                "warnings": [*plan.warnings, *(measured.warnings(plan) if measured else ())],
                "notes": [_without_folder(note) for note in detection_notes] + list(plan.notes),
                "pid": os.getpid(),
            }
        is_short = now is not None and now.guard >= GuardState.WARN
        return cls(status="warn" if is_short or not plan.fits else "pass", serving=serving, **shown)

    def to_json(self) -> str:
        """Return the report as JSON, without unset fields."""
        return self.model_dump_json(exclude_unset=True)


def _recycle_percent(deployment: Deployment | None) -> int | None:
    settings = deployment.settings if deployment else None
    return settings.memory_recycle_percent if settings and settings.memory_guard != "off" else None


def _without_folder(note: str) -> str:
    """Keep the class and the file's name of a note, "class: /folder/file"."""
    kind, _, detail = note.partition(": ")
    name = detail.rpartition("/")[2] if kind in ("malformed", "unreadable") else detail
    return f"{kind}: {re.sub(r'/(?:[^/ ]*/)*', '', name)}"
