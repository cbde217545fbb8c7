"""What the report shows of the last hour."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from ..runtime.events import Event
from ..runtime.history import Past, Stretch
from ..runtime.snapshot import Snapshot
from ..sizing.plan import MB


class HistoryPoint(BaseModel):
    """One minute of the last hour."""

    model_config = ConfigDict(frozen=True)

    at: float = Field(description="end of the minute, in seconds since 1970")
    seconds: float = Field(
        gt=0, description="its length: less than 60 for the current minute, more after a gap"
    )
    slots: int = Field(ge=0, description="requests that could run at once, on average")
    utilization: float = Field(
        ge=0, le=1, description="share of the time that slots were busy, 0 to 1"
    )
    requests: int = Field(ge=0, description="requests served or turned away")
    waited: int = Field(
        ge=0, description="requests that waited for more than 0.1 s before the app began"
    )
    queue_mean_seconds: float | None = Field(
        description="average time that requests waited before the app began; null if there were "
        "none, or if it cannot be measured"
    )
    queue_most_seconds: float | None = Field(description="the longest of these waits")
    memory_used_mb: int = Field(
        ge=0, description="highest memory use that counted towards the limit, in MB"
    )

    @classmethod
    def of(cls, minute: Stretch) -> Self:
        """Make the point of a minute."""
        mean, most = minute.queue_mean_seconds, minute.queue_most_seconds
        return cls(
            at=round(minute.at, 3),
            seconds=round(minute.seconds, 3),
            slots=round(minute.slots),
            utilization=round(minute.utilization, 3),
            requests=minute.requests,
            waited=minute.counted.waited,
            queue_mean_seconds=None if mean is None else round(mean, 6),
            queue_most_seconds=None if most is None else round(most, 6),
            memory_used_mb=minute.counted.used_bytes // MB,
        )


class RatesReport(BaseModel):
    """The last ten seconds or so, on average."""

    model_config = ConfigDict(frozen=True)

    seconds: float = Field(gt=0, description="length of the period")
    requests_per_second: float = Field(ge=0, description="requests served per second")
    busy: float = Field(ge=0, description="slots that were busy, on average")
    mean_ms: float | None = Field(
        description="average time that a request ran, in milliseconds; null if there was none"
    )
    cpu_ms: float | None = Field(description="CPU time of that, in milliseconds")

    @classmethod
    def of(cls, lately: Stretch) -> Self:
        """Make the report of the last seconds."""
        ran, computed = lately.mean_seconds, lately.cpu_seconds
        return cls(
            seconds=round(lately.seconds, 3),
            requests_per_second=round(lately.counted.served / lately.seconds, 2),
            busy=round(lately.busy, 3),
            mean_ms=None if ran is None else round(ran * 1000, 3),
            cpu_ms=None if computed is None else round(computed * 1000, 3),
        )


class EventReport(BaseModel):
    """Something that happened."""

    model_config = ConfigDict(frozen=True)

    at: float = Field(description="time of the event, in seconds since 1970")
    text: str = Field(description="what happened, in one line")

    @classmethod
    def of(cls, event: Event) -> Self:
        """Make the report of an event."""
        return cls(at=round(event.at, 3), text=event.text)


class PastReport(BaseModel):
    """What has happened since the start, and advice; unset if it may not be shown."""

    model_config = ConfigDict(frozen=True)

    uptime_seconds: float | None = Field(
        None, ge=0, description="time since the deployment was started"
    )
    running: list[float] | None = Field(
        None,
        description="how long each running request has been running, in seconds, longest first",
    )
    timeout_seconds: float | None = Field(
        None,
        description="seconds after which a running request counts as stuck (NOW_LMS_TIMEOUT); "
        "null for never",
    )
    memory_recycle_percent: int | None = Field(
        None,
        description="share of the memory limit above which the memory guard recycles a worker, in "
        "percent; null if it is off",
    )
    rates: RatesReport | None = Field(
        None,
        description="averages of the last ten seconds or so; null right after the start, and "
        "without a monitor",
    )
    history: list[HistoryPoint] | None = Field(
        None,
        description="the last hour, one entry a minute, oldest first; the last entry is the "
        "current minute. Null without a monitor",
    )
    events: list[EventReport] | None = Field(
        None, description="recent events, at most 32, oldest first"
    )
    advice: list[str] | None = Field(
        None, description="what to do, most urgent first; empty if there is nothing to do"
    )


def past_figures(
    now: Snapshot, past: Past, timeout_seconds: float | None, advice: list[str]
) -> dict[str, Any]:
    """Return the fields of :class:`PastReport`, by name."""
    running = sorted((ran for row in now.workers for ran in row.running_seconds), reverse=True)
    minutes = past.minutes
    return {
        "uptime_seconds": round(now.uptime_seconds, 3),
        "running": [round(ran, 3) for ran in running],
        "timeout_seconds": timeout_seconds,
        "rates": past.rates and RatesReport.of(past.rates),
        "history": None if minutes is None else [HistoryPoint.of(one) for one in minutes],
        "events": [EventReport.of(event) for event in past.events],
        "advice": advice,
    }
