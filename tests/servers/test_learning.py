"""A server that learns: its report says what the app costs, and the next start plans from that."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flask_workersize.monitor.learning import ENOUGH_REQUESTS
from flask_workersize.resources.processes import held_memory
from flask_workersize.sizing.profile import SizingProfile
from flask_workersize.sizing.profile_location import FILE_NAME
from tests.plain import MB
from tests.servers.clients import PATH
from tests.servers.serving import CONF, Server, Starter, await_that, flask, gunicorn, serve_prod

APP = "costly:create_app"
TOKEN = "a token of the tests"
BEARER = [("Authorization", f"Bearer {TOKEN}")]


def learning(folder: Path, choice: str = "learn", **others: str) -> dict[str, str]:
    """Return the environment of a server that learns, with its instance folder in a folder."""
    return {
        **PATH,
        "NOW_LMS_HEALTH_PORT": "0",
        "NOW_LMS_HEALTH_TOKEN": TOKEN,
        "NOW_LMS_SIZING_PROFILE": choice,
        "COSTLY_INSTANCE": str(folder / "instance"),
        **others,
    }


def teach(server: Server) -> dict[str, Any]:
    """Send requests until the report says what was learnt, and return the report."""
    report: dict[str, Any] = {}

    def knows() -> bool:
        with ThreadPoolExecutor(2) as pool:
            assert all(a.status == 200 for a in pool.map(server.get, ["/both"] * 20))
        report.update(server.live_report(BEARER))
        return report["measured"] is not None

    await_that(knows, "enough was seen", 60)
    return report


@pytest.mark.parametrize("args", [["--workers", "2", "--threads", "2"], ["--workers", "2"]])
def test_report_says_what_the_app_costs_and_the_next_start_plans_from_it(
    start: Starter, tmp_path: Path, args: list[str]
) -> None:
    server = start(serve_prod(*args, server="gunicorn", app=APP), None, **learning(tmp_path))
    report = teach(server.await_ready())
    learnt = report["measured"]
    assert learnt["requests"] >= ENOUGH_REQUESTS
    assert learnt["wait_ms"] > learnt["cpu_ms"] > 0
    assert 0 < learnt["worker_memory_mb"] < learnt["shared_memory_mb"]
    names = [line.partition("=")[0] for line in learnt["advice"]]
    assert names == ["NOW_LMS_WORKERS", "NOW_LMS_THREADS", "NOW_LMS_SIZING_PROFILE"]
    assert "planned 400 MB" in report["warnings"][0]
    assert server.stop() == 0
    made = SizingProfile.load(tmp_path / "instance" / FILE_NAME)
    assert (made.app, made.made_by, made.preload) == ("costly", "learn", True)
    assert made.requests >= learnt["requests"]
    plan = start.run(
        flask("workersize", "plan", "--server", "gunicorn", "--json", app=APP),
        None,
        **learning(tmp_path),
    )
    told = json.loads(plan.stdout)["plan"]
    assert told["sources"]["worker_memory_mb"] == "measured"
    assert told["worker_memory_mb"] == made.costs_for("gunicorn").private_mb(1)


def test_waitress_learns_too_and_counts_what_it_loaded_before_the_monitor_was_forked(
    start: Starter, tmp_path: Path
) -> None:
    environ = learning(tmp_path, COSTLY_LOADS_MB="80")
    server = start(serve_prod(server="waitress", app=APP), None, **environ)
    learnt = teach(server.await_ready())["measured"]
    names = [line.partition("=")[0] for line in learnt["advice"]]
    assert names == ["NOW_LMS_THREADS", "NOW_LMS_SIZING_PROFILE"]
    whole = learnt["shared_memory_mb"] + learnt["worker_memory_mb"]
    assert 80 < whole < 200
    assert whole > held_memory(server.pid) / MB - 1
    assert server.stop() == 0
    assert SizingProfile.load(tmp_path / "instance" / FILE_NAME).server.startswith("waitress ")


def test_workers_that_load_the_app_themselves_are_learnt_of_as_such(
    start: Starter, tmp_path: Path
) -> None:
    environ = learning(tmp_path, NOW_LMS_PRELOAD="off")
    server = start(serve_prod("--workers", "2", server="gunicorn", app=APP), None, **environ)
    teach(server.await_ready())
    assert server.stop() == 0
    assert not SizingProfile.load(tmp_path / "instance" / FILE_NAME).preload


def test_server_that_is_not_told_to_learn_reports_and_writes_nothing(
    start: Starter, tmp_path: Path
) -> None:
    server = start(
        serve_prod("--workers", "2", server="gunicorn", app=APP),
        None,
        **learning(tmp_path, "off"),
    )
    teach(server.await_ready())
    assert server.stop() == 0
    assert not (tmp_path / "instance").exists()


def test_gunicorn_started_directly_says_that_it_writes_nothing(
    start: Starter, tmp_path: Path
) -> None:
    command = gunicorn("-c", CONF, app=f"{APP}()")
    server = start(command, None, **learning(tmp_path)).await_ready()
    server.wait_for_line(r"NOW_LMS_SIZING_PROFILE=learn writes no profile here")
    assert server.stop() == 0
