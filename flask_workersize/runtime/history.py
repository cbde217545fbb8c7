"""What has happened lately, in memory that all processes share; the monitor writes it."""

from __future__ import annotations

from typing import NamedTuple

from .events import Event


class Minute(NamedTuple):
    """A minute of the last hour; ``at`` is its end, in seconds since 1970."""

    at: float
    seconds: float
    slots: int
    utilization: float
    requests: int
    waited: int
    queue_mean_seconds: float | None
    queue_most_seconds: float | None
    memory_used_bytes: int


class Rates(NamedTuple):
    """What happened on average in the last ten seconds or so."""

    seconds: float
    requests_per_second: float
    busy: float
    mean_seconds: float | None
    cpu_seconds: float | None


class Past(NamedTuple):
    """What has happened lately; ``minutes`` are ``None`` where no monitor runs."""

    minutes: tuple[Minute, ...] | None = None
    rates: Rates | None = None
    events: tuple[Event, ...] = ()
