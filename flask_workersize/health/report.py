"""CapacityReport: what a deployment can carry, for probes and people."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..runtime.snapshot import GuardState, Snapshot, WorkerStats
from ..sizing.plan import MB, SizingPlan
from .learnt import MeasuredReport


class WorkerReport(BaseModel):
    """One worker in the report."""

    model_config = ConfigDict(frozen=True)

    pid: int = Field(ge=0, description="its process; 0 in the moment after the fork")
    age_seconds: float = Field(ge=0, description="how long ago it was started")
    ready: bool = Field(description="whether it has loaded the app")
    silent_seconds: float = Field(ge=0, description="time since its main loop last went round")
    slots: int = Field(ge=1, description="requests that it can run at once")
    busy: int = Field(ge=0, description="requests that run")
    running_seconds: float = Field(ge=0, description="for how long the longest of them has run")
    served: int = Field(ge=0, description="requests that it has served")
    busy_seconds: float = Field(
        ge=0, description="time that its threads have spent on them, summed up"
    )
    cpu_seconds: float = Field(
        ge=0,
        description="time that they have computed for them, the server's part included",
    )
    rss_mb: float | None = Field(
        description="resident memory, in MB; pages that it shares with others count in full; null "
        "until it is measured"
    )
    pss_mb: float | None = Field(
        description="the same with each shared page divided among who shares it; null where the "
        "system does not tell"
    )
    uss_mb: float | None = Field(
        description="memory that is its own alone; null where the system does not tell"
    )
    memory_age_seconds: float | None = Field(description="how long ago memory was measured")

    @classmethod
    def of(cls, row: WorkerStats) -> WorkerReport:
        """Make the report of a row of the scoreboard."""
        memory = row.memory
        return cls(
            pid=row.pid,
            age_seconds=_rounded(row.lived_seconds),
            ready=row.is_ready,
            silent_seconds=_rounded(row.silent_seconds),
            slots=row.slots,
            busy=row.busy,
            running_seconds=_rounded(max(row.running_seconds, default=0.0)),
            served=row.served,
            busy_seconds=round(row.busy_seconds, 6),
            cpu_seconds=round(row.cpu_seconds, 6),
            rss_mb=_mb(memory.rss_bytes) if memory else None,
            pss_mb=_mb(memory.pss_bytes) if memory else None,
            uss_mb=_mb(memory.uss_bytes) if memory else None,
            memory_age_seconds=_rounded(memory.age_seconds) if memory else None,
        )


class CapacityReport(BaseModel):
    """The body of ``/_health/capacity``.

    It holds no environment value, no path, no host name and no version. ``sources``,
    ``warnings``, ``notes``, ``pid`` and ``rows`` are there only for who sends the token. The live
    figures, from ``workers_alive`` to ``draining``, are there where the app is served by
    flask-workersize: on the port of the app with the token, on the health port for everyone.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["pass", "warn"] = Field(
        description='"pass", or "warn" where the plan does not fit into available memory, or the '
        "memory guard cannot help"
    )
    serving: bool = Field(
        description="whether this app is served under the plan; false in a process that "
        "flask-workersize did not launch, where the plan is what it would be"
    )
    server: Literal["gunicorn", "waitress"] = Field(description="the WSGI server")
    workers: int = Field(ge=1, description="worker processes; 1 for waitress")
    threads: int = Field(ge=1, description="threads a worker")
    concurrency: int = Field(ge=1, description="requests that can run at once, workers × threads")
    worker_class: Literal["sync", "gthread"] | None = Field(
        description="gunicorn's worker class; null for waitress"
    )
    limited_by: Literal["cpu", "memory", "explicit", "min_workers", "max_workers"] = Field(
        description="which bound set the size"
    )
    worker_memory_mb: int = Field(
        ge=1,
        description="memory a worker is taken to need, in MB; where it was measured, of its own",
    )
    shared_memory_mb: int = Field(
        ge=0, description="memory that is needed once, in MB; 0 where it was not measured"
    )
    estimated_memory_mb: int = Field(ge=1, description="memory of all that, in MB")
    memory_available_mb: int = Field(
        ge=0, description="memory that was available at planning time, in MB"
    )
    cpus: float = Field(gt=0, description="CPUs that were available at planning time")
    workers_alive: int | None = Field(None, ge=0, description="live: worker processes that run")
    slots: int | None = Field(
        None, ge=0, description="live: requests that they can run at once, workers × threads"
    )
    busy: int | None = Field(
        None, ge=0, description="live: requests that run, without the one that asks"
    )
    utilization: float | None = Field(None, ge=0, le=1, description="live: busy / slots, 0 to 1")
    queued: int | None = Field(
        None,
        ge=0,
        description="live: connections and requests that wait for a free slot; null where the "
        "system does not tell",
    )
    served: int | None = Field(None, ge=0, description="live: requests served since the start")
    busy_seconds: float | None = Field(
        None, ge=0, description="live: time that threads have spent on them, summed up"
    )
    cpu_seconds: float | None = Field(
        None,
        ge=0,
        description="live: time that they have computed for them, the server's part included",
    )
    restarts: int | None = Field(
        None,
        ge=0,
        description="live: workers that ended while the server went on, and were replaced",
    )
    crashed: int | None = Field(
        None, ge=0, description="live: workers that were killed, or crashed, since the start"
    )
    draining: bool | None = Field(
        None, description="live: whether the server is about to stop: send no new requests"
    )
    workers_wanted: int | None = Field(
        None,
        ge=1,
        description="live: workers that there should be now: those planned, less or more where the "
        "memory guard or a limit that has changed wants it",
    )
    guard: Literal["off", "ok", "recycling", "reduced", "warn", "critical"] | None = Field(
        None,
        description='live: the memory guard: "recycling" lately, "reduced" to fewer workers than '
        'planned, "warn" where nothing it can do helps, "critical" shortly before the kernel acts',
    )
    memory_limit_mb: int | None = Field(
        None, ge=0, description="live: the memory limit that is nearest, in MB"
    )
    memory_used_mb: int | None = Field(
        None, ge=0, description="live: what counts towards it, in MB; page cache does not"
    )
    recycled: int | None = Field(
        None, ge=0, description="live: workers that the memory guard has recycled"
    )
    oom_kills: int | None = Field(
        None,
        ge=0,
        description="live: processes that the kernel has killed for want of memory since the start",
    )
    processes: list[WorkerReport] | None = Field(
        None, description="with the token: each worker, in no particular order"
    )
    measured: MeasuredReport | None = Field(
        None,
        description="with the token: what the app costs, as its traffic shows, and the lines to "
        "set; null before enough is known",
    )
    sources: dict[str, str] | None = Field(
        None, description="with the token: where each value came from"
    )
    warnings: list[str] | None = Field(
        None, description="with the token: what the operator should change"
    )
    notes: list[str] | None = Field(
        None, description="with the token: what the detection and the plan have to say"
    )
    pid: int | None = Field(None, description="with the token: the process that answered")

    @classmethod
    def of(
        cls,
        plan: SizingPlan,
        *,
        serving: bool,
        detection_notes: Iterable[str] = (),
        details: bool = False,
        live: Live | None = None,
    ) -> CapacityReport:
        """Make the report of a plan.

        :param plan: the plan of the app
        :param serving: whether the app is served under it
        :param detection_notes: notes of the detection, "class: detail"
        :param details: whether to tell what only the token opens
        :param live: what is happening now, where that may be told
        :returns: the report; what was left out is unset
        """
        shown = {name: value for name, value in plan.to_dict().items() if name in _OPEN_TO_ALL}
        learnt: MeasuredReport | None = None
        if live is not None:
            shown |= live.to_dict()
            if details:
                shown["processes"] = [WorkerReport.of(row) for row in live.snapshot.workers]
                shown["measured"] = learnt = live.measured
        if details:
            shown |= {
                "sources": dict(plan.sources),
                "warnings": [*plan.warnings, *(learnt.warnings(plan) if learnt else ())],
                "notes": [_without_folder(note) for note in detection_notes] + list(plan.notes),
                "pid": os.getpid(),
            }
        is_short = live is not None and live.snapshot.guard >= GuardState.WARN
        status: Literal["pass", "warn"] = "warn" if is_short or not plan.fits else "pass"
        return cls(status=status, serving=serving, **shown)

    def to_json(self) -> str:
        """Return the report as JSON; what is unset is left out."""
        return self.model_dump_json(exclude_unset=True)


@dataclass(frozen=True)
class Live:
    """What is happening now.

    :param snapshot: the scoreboard
    :param queued: connections that wait in the kernel; ``None`` where the system does not tell
    :param learnt: what the app costs; ``None`` before enough is known
    """

    snapshot: Snapshot
    queued: int | None
    measured: MeasuredReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the live figures by their names in the report."""
        now = self.snapshot
        return {
            "workers_alive": len(now.workers),
            "slots": now.slots,
            "busy": now.busy,
            "utilization": round(now.utilization, 3),
            "queued": None if self.queued is None else self.queued + now.waiting,
            "served": now.served,
            "busy_seconds": _rounded(now.busy_seconds),
            "cpu_seconds": _rounded(now.cpu_seconds),
            "restarts": now.restarts,
            "crashed": now.crashed,
            "draining": now.is_leaving,
            "workers_wanted": now.wanted,
            "guard": now.guard.name.lower(),
            "memory_limit_mb": now.memory_limit_bytes // MB,
            "memory_used_mb": now.memory_used_bytes // MB,
            "recycled": now.recycled,
            "oom_kills": now.oom_kills,
        }


_OPEN_TO_ALL = frozenset(SizingPlan.__dataclass_fields__) & frozenset(
    CapacityReport.model_fields
) - {"sources", "warnings", "notes"}


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


def _mb(size: int | None) -> float | None:
    return None if size is None else round(size / MB, 1)


def _without_folder(note: str) -> str:
    """Keep the class and the file's name of a note, "class: /folder/file"."""
    kind, _, detail = note.partition(": ")
    name = detail.rpartition("/")[2] if kind in ("malformed", "unreadable") else detail
    return f"{kind}: {re.sub(r'/(?:[^/ ]*/)*', '', name)}"
