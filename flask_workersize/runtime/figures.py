"""The live figures, each declared once: name, unit, meaning, and how it is summed up.

From these declarations follow the words of the scoreboard's header, the snapshot, the fields of
the report, the metrics and the docs' table. The unit stands in the name: ``_seconds`` are kept as
nanoseconds, ``_mb`` as bytes, everything else as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from .snapshot import Snapshot


class Source(Enum):
    """Where a figure comes from, if it is not calculated from a snapshot.

    ``STORED`` is a word of the header. ``SUMMED`` adds up the workers, and a word of the header
    keeps what those that have ended had counted.
    """

    STORED = "stored"
    SUMMED = "summed"


class Figure(NamedTuple):
    """How a live figure is made, and what it is called as a metric; ``None`` for no metric."""

    source: Source | Callable[[Snapshot], Any]
    metric: str | None
    is_counter: bool = False


Count = Annotated[int | None, Field(ge=0)]
Seconds = Annotated[float | None, Field(ge=0)]
Share = Annotated[float | None, Field(ge=0, le=1)]
Guard = Literal["off", "ok", "recycling", "reduced", "warn", "critical"] | None


class LiveFigures(BaseModel):
    """Live figures of the report; unset if they may not be shown."""

    model_config = ConfigDict(frozen=True)

    workers_alive: Annotated[Count, Figure(lambda now: len(now.workers), "workers")] = Field(
        None, description="running worker processes"
    )
    slots: Annotated[Count, Figure(lambda now: now.slots, "slots")] = Field(
        None, description="requests that can run at once now, workers × threads"
    )
    slots_most: Annotated[
        Count, Figure(lambda now: max(now.slots_most, now.slots), "slots_most")
    ] = Field(
        None,
        description="most requests that could run at once: more than slots if the size follows "
        "the load",
    )
    busy: Annotated[Count, Figure(lambda now: now.busy, "slots_busy")] = Field(
        None,
        description="slots in use, by a running request or a slow client, without the request "
        "for this report",
    )
    utilization: Annotated[
        Share, Figure(lambda now: round(now.utilization, 3), "utilization_ratio")
    ] = Field(None, description="busy / slots, 0 to 1")
    queued: Annotated[Count, Figure(lambda now: now.queued, "requests_queued")] = Field(
        None,
        description="connections and requests waiting for a free slot; null if the system does "
        "not report it",
    )
    queue_mean_seconds: Annotated[
        Seconds, Figure(lambda now: now.waits and round(now.waits[0], 6), None)
    ] = Field(
        None,
        description="average time that requests of the last minute waited before the app "
        "began; null if there were none, or if it cannot be measured",
    )
    queue_most_seconds: Annotated[
        Seconds, Figure(lambda now: now.waits and round(now.waits[1], 6), None)
    ] = Field(None, description="the longest of these waits")
    shed: Annotated[
        Count, Figure(lambda now: now.queue_totals and now.queue_totals.shed, "requests_shed", True)
    ] = Field(
        None,
        description="requests turned away because they waited longer than NOW_LMS_QUEUE_SECONDS",
    )
    abandoned: Annotated[
        Count,
        Figure(
            lambda now: now.queue_totals and now.queue_totals.abandoned, "requests_abandoned", True
        ),
    ] = Field(None, description="requests dropped because their client left while they waited")
    served: Annotated[Count, Figure(Source.SUMMED, "requests", True)] = Field(
        None, description="requests served since the start"
    )
    busy_seconds: Annotated[Seconds, Figure(Source.SUMMED, "busy_seconds", True)] = Field(
        None, description="time that threads spent on them, in total"
    )
    cpu_seconds: Annotated[Seconds, Figure(Source.SUMMED, "cpu_seconds", True)] = Field(
        None, description="CPU time that threads used for them, including the server's part"
    )
    cpu_wait_seconds: Annotated[Seconds, Figure(Source.SUMMED, "cpu_wait_seconds", True)] = Field(
        None, description="time they were ready to compute but had no CPU (Linux)"
    )
    restarts: Annotated[Count, Figure(Source.STORED, "worker_restarts", True)] = Field(
        None, description="workers that ended and were replaced"
    )
    crashed: Annotated[Count, Figure(Source.STORED, "worker_crashes", True)] = Field(
        None, description="workers that were killed, or crashed"
    )
    draining: Annotated[bool | None, Figure(lambda now: now.is_leaving, "draining")] = Field(
        None, description="whether the server is about to stop"
    )
    workers_wanted: Annotated[Count, Figure(lambda now: now.wanted, "workers_wanted")] = Field(
        None,
        description="target number of worker processes: the plan's, adjusted by the memory guard, "
        "changed limits and the load",
    )
    guard: Annotated[Guard, Figure(lambda now: now.guard.name.lower(), None)] = Field(
        None,
        description='the memory guard: "recycling" recently, "reduced" to fewer workers than '
        'planned, "warn" if nothing it can do helps, "critical" shortly before an OOM kill',
    )
    memory_limit_mb: Annotated[Count, Figure(Source.STORED, "memory_limit_bytes")] = Field(
        None, description="the nearest memory limit, in MB"
    )
    memory_used_mb: Annotated[Count, Figure(Source.STORED, "memory_used_bytes")] = Field(
        None, description="memory that counts towards it, in MB, without page cache"
    )
    recycled: Annotated[Count, Figure(Source.STORED, "workers_recycled", True)] = Field(
        None, description="workers recycled by the memory guard"
    )
    oom_kills: Annotated[Count, Figure(Source.STORED, "oom_kills", True)] = Field(
        None, description="processes killed by the OOM killer since the start"
    )


FIGURES: dict[str, Figure] = {
    name: item
    for name, field in LiveFigures.model_fields.items()
    for item in field.metadata
    if isinstance(item, Figure)
}
"""Every live figure by its name in the report."""


def raw_name(name: str) -> str:
    """Return what a figure is called as a word: "busy_ns" for "busy_seconds"."""
    return name.replace("_seconds", "_ns").replace("_mb", "_bytes")


STORED: tuple[str, ...] = tuple(
    raw_name(n) for n, f in FIGURES.items() if isinstance(f.source, Source)
)
"""The words of the header that keep a figure, or a part of one."""

SUMMED = tuple(raw_name(n) for n, f in FIGURES.items() if f.source is Source.SUMMED)
"""Those among them that add up the workers."""


def live_figures(now: Snapshot) -> dict[str, Any]:
    """Return every live figure of a snapshot, by its name in the report."""
    return {name: _value(name, figure.source, now) for name, figure in FIGURES.items()}


def _value(name: str, source: Source | Callable[[Snapshot], Any], now: Snapshot) -> Any:
    if not isinstance(source, Source):
        return source(now)
    raw = raw_name(name)
    number = now.total(raw) if source is Source.SUMMED else now.stored[raw]
    if raw.endswith("_ns"):
        return round(number / 1e9, 6)
    return number // (1024 * 1024) if raw.endswith("_bytes") else number
