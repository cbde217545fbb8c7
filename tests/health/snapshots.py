"""Plain snapshots of a scoreboard, for tests that need none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flask_workersize.runtime.figures import raw_name
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import Snapshot, State, WorkerMemory, WorkerStats
from tests.plain import MB

LIVE = {
    "workers_alive",
    "slots",
    "slots_most",
    "busy",
    "utilization",
    "queued",
    "queue_mean_seconds",
    "queue_most_seconds",
    "shed",
    "abandoned",
    "served",
    "busy_seconds",
    "cpu_seconds",
    "cpu_wait_seconds",
    "restarts",
    "crashed",
    "draining",
    "workers_wanted",
    "guard",
    "memory_limit_mb",
    "memory_used_mb",
    "recycled",
    "oom_kills",
}
"""What the report tells of now."""

PAST = {
    "uptime_seconds",
    "running",
    "timeout_seconds",
    "rates",
    "history",
    "events",
    "advice",
}
"""What it tells beside that of what has happened since the start."""

DETAILS = {"sources", "warnings", "notes", "pid"}
"""What it tells with the token alone."""

MEMORY = WorkerMemory(200 * MB, 150 * MB, 100 * MB, 100 * MB, age_seconds=0.5)

_board = Scoreboard(2, 2)
_board.allocate(1)
_BLANK = _board.read()


def row(running: tuple[float, ...] = (), slots: int = 2, **others: Any) -> WorkerStats:
    """Return a worker that runs requests for that many seconds each."""
    values: dict[str, Any] = {
        "pid": 4711,
        "start_time": 1,
        "is_ready": True,
        "lived_seconds": 3600.0,
        "silent_seconds": 0.25,
        "running_seconds": running,
        "slots": slots,
        "served": 10,
        "busy_ns": 2_500_000_000,
        "cpu_ns": 500_000_000,
        "memory": MEMORY,
    }
    return _BLANK.workers[0]._replace(**{**values, **others})


def snapshot(*rows: WorkerStats, **others: Any) -> Snapshot:
    """Return a server that serves with these workers."""
    values: dict[str, Any] = {"state": State.SERVING, "workers": rows}
    totals = {"served": 1234, "busy_seconds": 56.5, "cpu_seconds": 12.25, "cpu_wait_seconds": 0}
    stored = {**_BLANK.stored, "restarts": 3, "crashed": 1}
    for name, total in totals.items():
        raw, unit = raw_name(name), 1 if name == "served" else 1e9
        ended = int(others.pop(name, total) * unit) - sum(getattr(row, raw) for row in rows)
        stored[raw] = ended
    for name in stored.keys() & others.keys():
        stored[name] = others.pop(name)
    return replace(_BLANK, **{**values, **others}, stored=stored)


def live(*rows: WorkerStats, queued: int | None = 7, **others: Any) -> Snapshot:
    """Return what happens now on a server with these workers."""
    return replace(snapshot(*rows, **others), connections=queued)
