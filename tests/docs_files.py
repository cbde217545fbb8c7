"""Files in docs that come from the code; ``python -m tests.docs_files`` writes them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flask_workersize import CapacityReport, SizingPlan, compute_plan
from flask_workersize.measure import format
from flask_workersize.runtime.queue_times import BOUNDS_SECONDS, QueueTotals
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import GuardState, Snapshot, State, WorkerMemory
from flask_workersize.sizing.advice import advise
from flask_workersize.sizing.profile import SizingProfile
from tests import docs_pictures
from tests.plain import MB, load, plan, resources

DOCS = Path(__file__).parents[1] / "docs"

GUNICORN = {"NOW_LMS_WSGI_SERVER": "gunicorn"}
PID = 4711


def watched(plan: SizingPlan, busy: int) -> Snapshot:
    """Return the live figures of a server that has run for an hour.

    :param busy: how many requests run; the first workers have them
    """
    board = Scoreboard(plan.workers, plan.threads)
    for age in range(1, plan.workers + 1):
        board.allocate(age)
    board.state = State.SERVING
    seen = board.read()
    rows = []
    for row in seen.workers:
        running = min(busy - plan.threads * row.number, plan.threads)
        rows.append(
            row._replace(
                pid=PID + 2 + row.number,
                is_ready=True,
                lived_seconds=3600.0,
                silent_seconds=0.25,
                running_seconds=tuple(0.5 + 0.25 * number for number in range(running)),
                served=1200 - 10 * row.number,
                busy_ns=int((420.0 - row.number) * 1e9),
                cpu_ns=int((61.0 - row.number / 4) * 1e9),
                memory=WorkerMemory(96 * MB, 41 * MB, 30 * MB, 28 * MB, age_seconds=0.75),
            )
        )
    memory = {"memory_limit_bytes": 1024 * MB, "memory_used_bytes": 412 * MB}
    now = replace(seen, workers=tuple(rows), stored={**seen.stored, **memory}, guard=GuardState.OK)
    totals = QueueTotals((3400, 150, *[0] * (len(BOUNDS_SECONDS) - 1)), 9_000_000_000, 0, 1)
    return replace(now, connections=-now.waiting, waits=(0.0026, 0.009), queue_totals=totals)


def report(plan: SizingPlan, busy: int | None = None, **options: Any) -> str:
    """Return a report as the endpoint sends it, over several lines.

    :param busy: adds live figures, with so many requests running
    """
    now = None if busy is None else watched(plan, busy)
    made = CapacityReport.of(plan, **{"serving": True, "now": now, **options})
    if made.pid is not None:
        made = made.model_copy(update={"pid": PID})
    return pretty(json.loads(made.to_json()))


def pretty(value: Any) -> str:
    """Return JSON over several lines."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def measured() -> str:
    """Return what ``flask workersize measure`` prints for the profile of the docs."""
    profile = SizingProfile.load(DOCS / "measured.json")
    settings, machine = load(GUNICORN).measured_by(profile), resources(2, 512)
    costs = profile.costs_for("gunicorn")
    lines = [
        "$ NOW_LMS_WSGI_SERVER=gunicorn flask workersize measure",
        *format.table(profile),
        f"Plan with this profile: {compute_plan(settings, machine)}",
        *format.recommendation(advise(costs, settings, machine, "gunicorn"), costs, machine.cpus),
    ]
    return "\n".join(lines) + "\n"


FILES: dict[str, Callable[[], str]] = {
    "report.json": lambda: report(plan({}, 4, 1024)),
    "report-live.json": lambda: report(plan({}, 4, 1024), busy=2),
    "report-token.json": lambda: report(plan({"WORKERS": "2"}, 2, 300), busy=1, details=True),
    "report-not-serving.json": lambda: report(plan({}, 4, 1024, "waitress"), serving=False),
    "report-waitress.json": lambda: report(plan({}, 2, 1024, "waitress")),
    "report-schema.json": lambda: pretty(CapacityReport.model_json_schema()),
    "measured.txt": measured,
    "processes.svg": docs_pictures.processes,
    "sizing-steps.svg": docs_pictures.steps,
    "sizing-bounds.svg": docs_pictures.bounds,
}

if __name__ == "__main__":
    for name, text in FILES.items():
        (DOCS / name).write_text(text(), encoding="utf-8")
