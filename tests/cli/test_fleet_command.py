"""flask workersize fleet: what it prints, and what it refuses."""

from __future__ import annotations

import pytest
from click.testing import Result

from flask_workersize import WorkerSizing
from flask_workersize.app_state import get_state
from tests.export.intents import profile
from tests.plain import MB, clear_environment, new_app, resources


@pytest.fixture(autouse=True)
def _only_what_a_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)
    monkeypatch.setenv("NOW_LMS_WSGI_SERVER", "gunicorn")


def run(*arguments: str) -> Result:
    """Run the command for an app that holds 50 MB, on a machine with 1 CPU."""
    app = new_app()
    WorkerSizing(app)
    get_state(app).resources = resources(cpus=1)
    get_state(app).held_bytes = 50 * MB
    return app.test_cli_runner().invoke(args=["workersize", "fleet", *arguments])


def lines(*arguments: str) -> list[str]:
    done = run(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_example_of_2000_requests_a_second() -> None:
    assert lines("--rps", "2000", "--service-ms", "120") == [
        "2000 requests/s × 120 ms = 240 concurrent requests on average; "
        "95 % wait at most 50 ms for a slot.",
        "instance      slots      least connections  random  replicas  binds",
        "this machine  3 (3 × 1)  82                 222     82        slots",
        "replicas: for least connections, with one queue, in the balancer (maxconn).",
        "Note: the CPU time of a request is unknown: run flask workersize measure.",
    ]


@pytest.mark.parametrize(
    ("balancer", "replicas", "says"),
    [
        ("leastconn", "83", "one queue, in the balancer"),
        ("random", "223", "as by a Kubernetes Service"),
        ("roundrobin", "223", "an upper bound"),
    ],
)
def test_balancer_chooses_the_queue_and_spare_ones_come_on_top(
    balancer: str, replicas: str, says: str
) -> None:
    arguments = ("--rps", "2000", "--service-ms", "120", "--balancer", balancer, "--spare", "1")
    _, _, row, note, _ = lines(*arguments)
    assert row.split()[-2] == replicas
    assert says in note
    assert "1 replica to spare included" in note


def test_each_instance_has_a_row_and_the_cheapest_is_marked() -> None:
    given = ("--instance", "700M:1@7", "--instance", "512M:0.5@3.25", "--instance", "2G:2")
    _, header, *rows, _, _ = lines("--rps", "2000", "--service-ms", "120", *given)
    assert header.endswith("cost")
    assert [row.split()[0] for row in rows] == ["700M:1@7", "512M:0.5@3.25", "2G:2"]
    assert [row.split()[1] for row in rows] == ["3", "2", "5"]
    assert [row.endswith("399.75  <- cheapest") for row in rows] == [False, True, False]
    assert rows[0].endswith(" 574")
    assert rows[2].endswith(" slots")


def test_profile_gives_times_and_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    profile(60, 60).model_copy(update={"app": "lms"}).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOW_LMS_SIZING_PROFILE", str(path))
        done = lines("--rps", "2000", "--instance", "192M:1")
    assert done[0].startswith("2000 requests/s × 120 ms = 240 concurrent requests")
    assert done[2].split() == ["192M:1", "3", "(3", "×", "1)", "82", "222", "172", "172", "CPU"]
    assert done[-1] == "CPU: 60 ms per request, at 70% of the CPUs."


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rps", "many"], "--rps is not a number from 0 to 10,000,000."),
        (["--rps", "0"], "--rps times the time of a request must be above 0"),
        (["--rps", "10000000", "--service-ms", "3600000"], "at most 1,000,000 concurrent requests"),
        (["--service-ms", "-1"], "--service-ms is not a number"),
        (["--p95-wait-ms", "x"], "--p95-wait-ms is not a number"),
        (["--spare", "1.5"], "--spare is not a whole number"),
        (["--balancer", "dice"], "--balancer must be one of leastconn, random, roundrobin."),
        (["--instance", "512M:1:2"], "--instance is not MEMORY"),
        (["--instance", "512M@x"], "--instance is not MEMORY"),
        (["--instance", "512"], "--instance: MEMORY is not a size"),
        (["--instance", "100M:1"], "--instance: no worker fits into 100 MB"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], says: str) -> None:
    done = run("--rps", "10", "--service-ms", "120", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_unknown_time_of_a_request_names_both_ways() -> None:
    done = run("--rps", "10")
    assert done.exit_code == 2
    assert "flask workersize measure" in done.stderr
    assert "--service-ms 120" in done.stderr
