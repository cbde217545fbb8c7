"""What the memory guard may see, in MB of a limit of 1000."""

from __future__ import annotations

from functools import reduce
from typing import Any

from flask_workersize.monitor.observation import Action, Done, History, Kind, Observation, Rules
from flask_workersize.resources.gauge import MemoryState
from flask_workersize.runtime.snapshot import WorkerMemory, WorkerStats
from tests.health.snapshots import row
from tests.plain import MB

LIMIT_MB = 1000
RULES = Rules()


def worker(
    age: int,
    own: int = 100,
    *,
    warm: int | None = None,
    first: int = 50,
    ready: bool = True,
    leaving: bool = False,
) -> WorkerStats:
    """Return a worker with so much private memory now, when it was warm, and at first."""
    memory = WorkerMemory(
        own * MB, None, own * MB, first * MB, None if warm is None else warm * MB, own * MB
    )
    return row(age=age, memory=memory, is_ready=ready, is_leaving=leaving)


def seen(
    *workers: WorkerStats,
    used: int = 500,
    group: bool = True,
    peak: int = 0,
    recent: tuple[Done, ...] = (),
    **others: Any,
) -> Observation:
    """Return an observation of these workers, all that are planned; ``recent`` is what was done."""
    count = max(len(workers), 1)
    return Observation(
        **{
            "now": 10.0,
            "memory": MemoryState(LIMIT_MB * MB, used * MB, group),
            "planned": count,
            "wanted": count,
            "workers": workers,
            "peak_bytes": peak * MB,
            "since": others.get("now", 10.0),
            "history": reduce(lambda past, one: past.after(one.at, one.action), recent, History()),
            **others,
        }
    )


def done(kind: Kind, at: float) -> Done:
    """Return an action of the past."""
    return Done(at, Action(kind, None, "because"))
