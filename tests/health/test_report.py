"""CapacityReport: what anyone may know, and what only the token opens."""

from __future__ import annotations

import json
import os

import pytest
from pydantic import ValidationError

from flask_workersize import CapacityReport, SizingPlan
from tests.plain import plan

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
    "estimated_memory_mb",
    "memory_available_mb",
    "cpus",
}
DETAILS = {"sources", "warnings", "notes", "pid"}


def report(of: SizingPlan, details: bool = False, notes: tuple[str, ...] = ()) -> CapacityReport:
    return CapacityReport.of(of, serving=True, detection_notes=notes, details=details)


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
        "estimated_memory_mb": 400,
        "memory_available_mb": 1024,
        "cpus": 4.0,
    }


def test_open_report_of_waitress_has_no_worker_class() -> None:
    shown = json.loads(report(plan(server="waitress")).to_json())
    assert set(shown) == OPEN
    assert shown["worker_class"] is None


def test_details_are_the_open_report_and_four_more() -> None:
    made = plan({"NOW_LMS_WORKERS": "4", "WORKERS": "3"}, memory_mb=900)
    shown = json.loads(report(made, details=True, notes=("cgroup-missing: none",)).to_json())
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
            "approximate: /sys/fs/cgroup stands for the group of this process",
            "approximate: cgroup stands for the group of this process",
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
    assert set(schema["properties"]) == OPEN | DETAILS
    assert set(schema["required"]) == OPEN
    assert all(item["description"] for item in schema["properties"].values())


def test_report_can_be_read_back() -> None:
    made = report(plan({"WORKERS": "9"}, memory_mb=512), details=True)
    assert CapacityReport.model_validate_json(made.to_json()) == made
