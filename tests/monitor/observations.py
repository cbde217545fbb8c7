"""What the memory guard may see, in MB of a limit of 1000."""

from __future__ import annotations

from typing import Any

from flask_workersize.monitor.guard import Action, Done, Kind, Observation, Rules, Worker
from tests.plain import MB

LIMIT_MB = 1000
RULES = Rules()


def worker(
    age: int, own: int = 100, *, warm: int | None = None, ready: bool = True, leaving: bool = False
) -> Worker:
    """Return a worker with so much memory of its own, now and when it was warm."""
    return Worker(age, own * MB, None if warm is None else warm * MB, ready, leaving)


def seen(
    *workers: Worker,
    used: int = 500,
    group: bool = True,
    fresh: int = 50,
    peak: int = 0,
    **others: Any,
) -> Observation:
    """Return an observation of these workers, all that are planned."""
    count = max(len(workers), 1)
    return Observation(
        **{
            "now": 10.0,
            "limit_bytes": LIMIT_MB * MB,
            "used_bytes": used * MB,
            "is_group": group,
            "planned": count,
            "wanted": count,
            "workers": workers,
            "fresh_bytes": fresh * MB,
            "peak_bytes": peak * MB,
            **others,
        }
    )


def done(kind: Kind, at: float) -> Done:
    """Return an action of the past."""
    return Done(at, Action(kind, None, "because"))
