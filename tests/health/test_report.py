"""CapacityReport: what anyone may know, and what only the token opens."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from pydantic import ValidationError

from flask_workersize import CapacityReport, SizingPlan, SizingSettings, compute_plan
from flask_workersize.runtime.deployment import Deployment
from flask_workersize.runtime.events import Event
from flask_workersize.runtime.history import Past, Sample, Stretch
from flask_workersize.runtime.queue_times import QueueTotals
from flask_workersize.runtime.snapshot import GuardState, Snapshot, State, WorkerMemory
from flask_workersize.sizing.adaptive import adaptive_bounds
from tests.health.snapshots import DETAILS, LIVE, PAST, live, row
from tests.plain import MB, load, plan, resources

OPEN = {
    "status",
    "serving",
    "server",
    "workers",
    "threads",
    "concurrency",
    "worker_class",
    "limited_by",
    "worker_memory_mb",
    "shared_memory_mb",
    "estimated_memory_mb",
    "memory_available_mb",
    "cpus",
    "why",
}
ROWS = {"processes", "measured"}


def report(
    of: SizingPlan,
    details: bool = False,
    notes: tuple[str, ...] = (),
    live: Snapshot | None = None,
) -> CapacityReport:
    return CapacityReport.of(of, serving=True, detection_notes=notes, details=details, now=live)


def told_of(made: CapacityReport) -> dict[str, Any]:
    """Return what a client reads."""
    read: dict[str, Any] = json.loads(made.to_json())
    return read


def test_open_report_of_gunicorn() -> None:
    assert json.loads(report(plan({"THREADS": "2"}, memory_mb=1024)).to_json()) == {
        "status": "pass",
        "serving": True,
        "server": "gunicorn",
        "workers": 2,
        "threads": 2,
        "concurrency": 4,
        "worker_class": "gthread",
        "limited_by": "memory",
        "worker_memory_mb": 200,
        "shared_memory_mb": 0,
        "estimated_memory_mb": 400,
        "memory_available_mb": 1024,
        "cpus": 4.0,
        "why": {
            "cpu": "2 × 4 CPUs + 1 = 9",
            "memory": "1024 MB available / 200 MB a worker = 5",
        },
    }


def test_open_report_of_waitress_has_no_worker_class() -> None:
    made = told_of(report(plan(server="waitress")))
    assert set(made) == OPEN
    assert made["worker_class"] is None


def test_details_are_the_open_report_and_four_more() -> None:
    made = plan({"NOW_LMS_WORKERS": "4", "WORKERS": "3"}, memory_mb=900)
    shown = told_of(report(made, details=True, notes=("cgroup-missing: none",)))
    assert set(shown) == OPEN | DETAILS
    assert {name: shown[name] for name in DETAILS} == {
        "sources": made.sources,
        "warnings": list(made.warnings),
        "notes": ["cgroup-missing: none", *made.notes],
        "pid": os.getpid(),
    }


@pytest.mark.parametrize(
    ("environ", "memory_mb", "status"),
    [
        ({}, 1024, "pass"),  # the note about 80 % is none of the warnings
        ({}, 100, "warn"),
        ({"WORKERS": "9"}, 512, "warn"),
        ({"WORKERS": "2"}, 512, "pass"),
        ({"NOW_LMS_WORKERS": "2", "WORKERS": "3"}, 512, "pass"),
    ],
)
def test_status_warns_where_the_plan_does_not_fit(
    environ: dict[str, str], memory_mb: float, status: str
) -> None:
    assert report(plan(environ, memory_mb=memory_mb)).status == status


@pytest.mark.parametrize(
    ("note", "shown"),
    [
        ("unreadable: /sys/fs/cgroup/cpu.max", "unreadable: cpu.max"),
        ("malformed: /sys/fs/cgroup/my group/memory.max", "malformed: memory.max"),
        (
            "approximate: /sys/fs/cgroup is used as the group of this process",
            "approximate: cgroup is used as the group of this process",
        ),
    ],
)
def test_note_keeps_its_class_and_the_name_of_the_file(note: str, shown: str) -> None:
    made = report(plan(), details=True, notes=(note,))
    assert made.notes == [shown]


def test_report_is_frozen() -> None:
    with pytest.raises(ValidationError):
        report(plan()).workers = 99


def test_schema_describes_every_field() -> None:
    schema = CapacityReport.model_json_schema()
    assert set(schema["properties"]) == OPEN | LIVE | PAST | ROWS | DETAILS
    assert set(schema["required"]) == OPEN
    assert all(item["description"] for item in schema["properties"].values())
    for part in ("WorkerReport", "MeasuredReport"):
        described = schema["$defs"][part]
        assert all(item["description"] for item in described["properties"].values())
        assert set(described["required"]) == set(described["properties"])


@pytest.mark.parametrize("now", [None, live(row((1.0,)), row(memory=None), queued=None)])
def test_report_can_be_read_back(now: Snapshot | None) -> None:
    made = report(plan({"WORKERS": "9"}, memory_mb=512), details=True, live=now)
    assert CapacityReport.model_validate_json(made.to_json()) == made


# What is happening now


def test_live_figures_are_those_of_all_workers() -> None:
    memory = {"memory_limit_bytes": 512 * MB, "memory_used_bytes": 300 * MB + 1}
    guard = {"guard": GuardState.REDUCED, "wanted": 3, "recycled": 5, "oom_kills": 2}
    queue = {"waits": (0.25, 1.5), "queue_totals": QueueTotals((4, 5), 2_250_000_000, 2, 1)}
    now = live(row((1.0,)), row((2.0, 3.0)), queued=7, **memory, **guard, **queue)
    made = told_of(report(plan(), live=now))
    assert set(made) == OPEN | LIVE | PAST
    assert {name: made[name] for name in LIVE} == {
        "workers_alive": 2,
        "slots": 4,
        "slots_most": 4,
        "busy": 3,
        "utilization": 0.75,
        "queued": 7,
        "queue_mean_seconds": 0.25,
        "queue_most_seconds": 1.5,
        "shed": 2,
        "abandoned": 1,
        "served": 1234,
        "busy_seconds": 56.5,
        "cpu_seconds": 12.25,
        "cpu_wait_seconds": 0,
        "restarts": 3,
        "crashed": 1,
        "draining": False,
        "workers_wanted": 3,
        "guard": "reduced",
        "memory_limit_mb": 512,
        "memory_used_mb": 300,
        "recycled": 5,
        "oom_kills": 2,
    }


def test_live_figures_of_no_worker_are_0() -> None:
    made = told_of(report(plan(), live=live(queued=0)))
    assert [made[name] for name in ("workers_alive", "slots", "busy", "utilization")] == [0] * 4


def test_rows_are_told_only_with_the_details() -> None:
    made = told_of(report(plan(), details=True, live=live(row(), row())))
    assert set(made) == OPEN | LIVE | PAST | ROWS | DETAILS
    assert len(made["processes"]) == 2
    assert set(told_of(report(plan(), details=True))) == OPEN | DETAILS


def test_row_tells_how_its_worker_fares() -> None:
    worker = row((1.5, 61.25), pid=4711, silent_seconds=0.12345, lived_seconds=3600.0)
    (told,) = told_of(report(plan(), details=True, live=live(worker)))["processes"]
    assert told == {
        "pid": 4711,
        "age_seconds": 3600.0,
        "ready": True,
        "silent_seconds": 0.123,
        "slots": 2,
        "busy": 2,
        "running_seconds": 61.25,
        "served": 10,
        "busy_seconds": 2.5,
        "cpu_seconds": 0.5,
        "rss_mb": 200.0,
        "pss_mb": 150.0,
        "uss_mb": 100.0,
        "first_mb": 100.0,
        "warm_mb": None,
        "peak_mb": 0.0,
        "memory_age_seconds": 0.5,
        "memory_served": 0,
    }


def test_row_of_an_idle_worker_runs_for_0_seconds() -> None:
    (told,) = told_of(report(plan(), details=True, live=live(row())))["processes"]
    assert (told["busy"], told["running_seconds"]) == (0, 0)


@pytest.mark.parametrize(
    ("memory", "rss_mb", "pss_mb", "age"),
    [
        (None, None, None, None),
        (WorkerMemory(100 * MB, None, 0, age_seconds=1.0), 100, None, 1.0),
        (WorkerMemory(100 * MB + MB // 4, 0, 0), 100.25, 0, 0.0),
    ],
)
def test_memory_that_is_not_known_is_null(
    memory: WorkerMemory | None, rss_mb: float | None, pss_mb: float | None, age: float | None
) -> None:
    (told,) = told_of(report(plan(), details=True, live=live(row(memory=memory))))["processes"]
    assert (told["rss_mb"], told["pss_mb"], told["memory_age_seconds"]) == (rss_mb, pss_mb, age)


@pytest.mark.parametrize(
    ("queued", "task_queue", "waiting", "told"),
    [
        (0, 0, 0, 0),
        (2, 0, 0, 2),
        (2, 3, 0, 5),
        (2, 0, 4, 6),
        (None, 0, 0, None),
        (None, 3, 4, None),
    ],
)
def test_queue_is_that_of_the_kernel_and_that_of_the_server_or_null(
    queued: int | None, task_queue: int, waiting: int, told: int | None
) -> None:
    now = live(row(waiting=waiting), queued=queued, task_queue=task_queue)
    assert told_of(report(plan(), live=now))["queued"] == told


@pytest.mark.parametrize(
    ("state", "draining"),
    [
        (State.STARTING, False),
        (State.SERVING, False),
        (State.DRAINING, True),
        (State.STOPPING, True),
        (State.STOPPED, True),
    ],
)
def test_draining_is_told_from_the_first_moment_to_the_last(state: State, draining: bool) -> None:
    assert told_of(report(plan(), live=live(row(), state=state)))["draining"] is draining


@pytest.mark.parametrize("guard", GuardState)
def test_status_warns_where_the_memory_guard_cannot_help(guard: GuardState) -> None:
    made = report(plan(), live=live(row(), guard=guard))
    assert made.guard == guard.name.lower()
    assert made.status == ("warn" if guard in (GuardState.WARN, GuardState.CRITICAL) else "pass")


def test_running_requests_are_told_without_their_worker_the_longest_first() -> None:
    made = told_of(report(plan(), live=live(row((0.12345, 9.5)), row(), row((3.0,)))))
    assert made["running"] == [9.5, 3.0, 0.123]


def test_what_is_not_known_of_the_past_is_null() -> None:
    made = told_of(report(plan(), live=live(row(), uptime_seconds=12.3456)))
    assert {name: made[name] for name in PAST} == {
        "uptime_seconds": 12.346,
        "running": [],
        "timeout_seconds": None,
        "memory_recycle_percent": None,
        "rates": None,
        "history": None,
        "events": [],
        "advice": [],
    }


def test_past_is_told_as_it_was() -> None:
    counted = Sample(
        at_ns=60 * 10**9,
        slot_ns=4 * 60 * 10**9,
        occupied_ns=90 * 10**9,
        busy_ns=88 * 10**9,
        cpu_ns=22 * 10**9,
        served=440,
        refused=2,
        queued=442,
        queue_ns=44 * 10**9,
        waited=3,
        queue_most_ns=10**9,
        used_bytes=321 * MB,
    )
    minute = Stretch(1.8e9, counted)
    past = Past((minute,), minute, minute, (Event(1.7e9, "monitor died; restarting"),))
    deployment = Deployment(load({"NOW_LMS_TIMEOUT": "30"}), resources(), plan())
    made = CapacityReport.of(
        plan(), serving=True, now=live(row()), past=past, deployment=deployment
    )
    told = told_of(made)
    assert told["history"] == [
        {
            "at": 1.8e9,
            "seconds": 60,
            "slots": 4,
            "utilization": 0.375,
            "requests": 442,
            "waited": 3,
            "queue_mean_seconds": 0.099548,
            "queue_most_seconds": 1,
            "memory_used_mb": 321,
        }
    ]
    assert told["rates"] == {
        "seconds": 60,
        "requests_per_second": 7.33,
        "busy": 1.5,
        "mean_ms": 200,
        "cpu_ms": 50,
    }
    assert told["events"] == [{"at": 1.7e9, "text": "monitor died; restarting"}]
    assert told["timeout_seconds"] == 30
    assert CapacityReport.model_validate_json(made.to_json()) == made.model_copy(
        update={"queue_totals": None}
    )


@pytest.mark.parametrize(
    ("environ", "options", "why"),
    [
        (
            {},
            {"cpus": 1, "memory_mb": 2048},
            ("2 × 1 CPU + 1 = 3", "2048 MB available / 200 MB a worker = 10"),
        ),
        (
            {"NOW_LMS_MEMORY_HEADROOM_PERCENT": "30", "WORKERS": "9"},
            {"cpus": 2.5, "memory_mb": 1000},
            ("2 × 2.5 CPUs + 1 = 6", "1000 MB available × 70 % / 200 MB a worker = 3"),
        ),
    ],
)
def test_both_bounds_are_told_with_their_numbers(
    environ: dict[str, str], options: dict[str, Any], why: tuple[str, str]
) -> None:
    told = told_of(report(plan(environ, **options)))["why"]
    assert (told["cpu"], told["memory"]) == why


def test_utilization_has_three_places_and_is_at_most_1() -> None:
    assert told_of(report(plan(), live=live(row((1.0,), slots=3))))["utilization"] == 0.333
    assert told_of(report(plan(), live=live(row((1.0,) * 3, slots=3))))["utilization"] == 1


def test_bounds_of_a_size_that_follows_the_load_are_told() -> None:
    settings = SizingSettings(sizing="adaptive", wsgi_server="gunicorn")
    machine = resources(2)
    made = compute_plan(settings, machine)
    limits = adaptive_bounds(settings, made)
    deployment = Deployment(settings, machine, made, bounds=limits)
    told = told_of(CapacityReport.of(made, serving=True, deployment=deployment))
    assert told["why"]["adapts"] == "1 to 5 workers × 1 to 64 threads"
