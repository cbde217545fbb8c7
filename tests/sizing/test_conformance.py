"""The golden cases: every number of the guide, and the table that Heroku publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flask_workersize import SizingSettings, compute_plan
from tests.plain import MB, resources

COPIES = Path(__file__).parents[1] / "data"
ORIGINALS = Path(__file__).parents[3] / "shared" / "conformance"
INPUTS = {"where", "cpus", "memory_available_mb", "env", "server"}


def read(name: str) -> Any:
    return json.loads((COPIES / name).read_text(encoding="utf-8"))


GUIDE = read("guide.json")["cases"]
SIZING = read("limits.json")["sizing"]


def case_id(case: dict[str, Any]) -> str:
    return str(case.get("name") or f"{case['where']}: {case['server']}")


@pytest.mark.parametrize("case", GUIDE, ids=case_id)
def test_plan_is_what_the_guide_says(case: dict[str, Any]) -> None:
    settings = SizingSettings.load(environ=case["env"])
    machine = resources(case["cpus"], case["memory_available_mb"])
    plan = compute_plan(settings, machine, case["server"]).to_dict()
    expected = {name: value for name, value in case.items() if name not in INPUTS}
    assert {name: plan[name] for name in expected} == expected


@pytest.mark.parametrize("case", GUIDE, ids=case_id)
def test_guide_holds_where_the_environment_chooses_the_server(case: dict[str, Any]) -> None:
    environ = {**case["env"], "NOW_LMS_WSGI_SERVER": case["server"]}
    machine = resources(case["cpus"], case["memory_available_mb"])
    plan = compute_plan(SizingSettings.load(environ=environ), machine)
    assert (plan.server, plan.workers, plan.threads) == (
        case["server"],
        case["workers"],
        case["threads"],
    )


@pytest.mark.parametrize("case", SIZING, ids=case_id)
def test_workers_are_what_heroku_publishes_for_its_machines(case: dict[str, Any]) -> None:
    assert case["headroom"] == 1.0  # all of the memory
    environ = {"NOW_LMS_WORKER_MEMORY_MB": str(case["per_worker"] // MB)}
    machine = resources(case["cpus"], case["memory"] / MB)
    plan = compute_plan(SizingSettings.load(environ=environ), machine, "gunicorn")
    assert plan.workers == case["workers"]


def test_golden_cases_are_many() -> None:
    """An empty file would pass all of the above."""
    assert len(GUIDE) >= 20
    assert len(SIZING) >= 8


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="../shared/conformance is not here")
@pytest.mark.parametrize("name", ["guide.json", "limits.json"])
def test_copies_are_the_originals(name: str) -> None:
    copy, original = COPIES / name, ORIGINALS / name
    assert copy.read_bytes() == original.read_bytes(), f"copy {original} to {copy}"
