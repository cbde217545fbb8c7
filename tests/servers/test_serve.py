"""serve(app) from a run.py, the guide's own run.py, and what a worker inherits of the launcher."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from flask_workersize import get_worker_config_from_env
from tests.servers.serving import APPS, Starter, script, serve_prod

GUIDE_RUN = Path(__file__).parents[1] / "data" / "guide_run.py"


def notes(folder: Path) -> Counter[tuple[str, int]]:
    """Return how often each process wrote each note."""
    lines = (folder / "notes.txt").read_text().splitlines()
    return Counter((who, int(pid)) for who, pid in map(str.split, lines))


def test_run_py_serves_under_the_plan(start: Starter, name: str) -> None:
    server = start(script(APPS / "run_app.py", name), NOW_LMS_WORKERS="2", NOW_LMS_THREADS="2")
    seen = server.get("/").json()
    assert seen["serving"] is True
    assert seen["plan"]["server"] == name
    assert seen["plan"]["concurrency"] == {"gunicorn": 4, "waitress": 2}[name]
    assert server.get("/").headers["Server"] == name
    assert server.stderr.count("2 threads") == 1
    assert server.stop() == 0


def test_run_py_leaves_the_server_to_the_environment(start: Starter) -> None:
    server = start(script(APPS / "run_app.py"), NOW_LMS_WSGI_SERVER="gunicorn", WORKERS="1")
    assert server.get("/").headers["Server"] == "gunicorn"


def test_argument_of_serve_wins_over_the_environment(start: Starter) -> None:
    server = start(script(APPS / "run_app.py", "waitress"), NOW_LMS_WSGI_SERVER="gunicorn")
    assert server.get("/").headers["Server"] == "waitress"


def test_clean_up_of_the_launcher_runs_once_and_atexit_in_every_worker(start: Starter) -> None:
    server = start(script(APPS / "run_app.py", "gunicorn"), NOW_LMS_WORKERS="2")
    workers = {seen["pid"] for seen in server.gather(2)}
    assert server.stop() == 0
    expected = Counter({("atexit", pid): 1 for pid in (*workers, server.pid)})
    expected["returned", server.pid] = expected["finally", server.pid] = 1
    assert notes(server.folder) == expected


def test_clean_up_runs_once_after_waitress(start: Starter) -> None:
    server = start(script(APPS / "run_app.py", "waitress"))
    server.get("/").json()
    assert server.stop() == 0
    counted = notes(server.folder)
    assert counted["finally", server.pid] == counted["atexit", server.pid] == 1


@pytest.mark.parametrize(
    ("environ", "status", "culprit"),
    [
        ({"NOW_LMS_THREADS": "0"}, 2, "NOW_LMS_THREADS"),
        ({"NOW_LMS_HOST": "192.0.2.1"}, 1, "192.0.2.1"),
    ],
)
def test_run_py_that_cannot_serve_says_so_in_one_line(
    start: Starter, name: str, environ: dict[str, str], status: int, culprit: str
) -> None:
    done = start.run(script(APPS / "run_app.py", name), **environ)
    assert culprit in done.assert_one_line_error(status)


def test_unknown_server_given_to_serve_is_refused_by_name(start: Starter) -> None:
    done = start.run(script(APPS / "run_app.py", "uwsgi"))
    assert "serve(server=...) is not a known value" in done.assert_one_line_error(2)


@pytest.mark.parametrize(
    ("environ", "workers", "threads"),
    [
        ({}, None, 1),
        ({"NOW_LMS_WORKERS": "2"}, 2, 1),
        ({"WORKERS": "1", "THREADS": "3"}, 1, 3),
    ],
    ids=["calculated", "workers", "threads"],
)
def test_guides_own_run_py_serves_with_the_computed_size(
    start: Starter,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    workers: int | None,
    threads: int,
) -> None:
    """Only its two imports of now_lms, and its port, are not the guide's."""
    if workers is None:
        for variable in ("NOW_LMS_WORKERS", "WORKERS", "WEB_CONCURRENCY", "NOW_LMS_THREADS"):
            monkeypatch.delenv(variable, raising=False)
        workers, _ = get_worker_config_from_env()
        assert workers <= 2 * (os.cpu_count() or 1) + 1
    server = start(script(GUIDE_RUN), GUIDE_BIND="127.0.0.1:0", **environ)
    slots = workers if threads == 1 else threads
    seen = server.gather(slots)
    assert len({facts["pid"] for facts in seen}) == workers
    assert len({(facts["pid"], facts["thread"]) for facts in seen}) == slots
    assert server.stop() == 0
    assert len(server.booted_pids) == workers
    assert f"Starting with {workers} workers and {threads} threads\n" in server.stdout


def test_every_request_of_a_sync_worker_has_a_context_of_its_own(start: Starter) -> None:
    """The app context that Flask's command pushed would be used again for every request."""
    server = start(serve_prod("--workers", "1", server="gunicorn", app="contexts:create_app"))
    seen = [server.get("/").json() for _ in range(3)]
    (worker,) = {facts["pid"] for facts in seen}
    assert worker != server.pid
    assert [facts["n"] for facts in seen] == [1, 1, 1]
    lines = (server.folder / "teardowns.txt").read_text().splitlines()
    assert lines == [f"{worker} 1"] * 3
    assert server.stop() == 0
    after = (server.folder / "teardowns.txt").read_text().splitlines()[3:]
    assert not [line for line in after if line.startswith(f"{worker} ")]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_every_request_has_a_context_of_its_own_on_both_servers(
    start: Starter, name: str, threads: str
) -> None:
    server = start(
        serve_prod("--workers", "1", "--threads", threads, server=name, app="contexts:create_app")
    )
    assert [server.get("/").json()["n"] for _ in range(3)] == [1, 1, 1]
    pid = server.get("/").json()["pid"]
    lines = (server.folder / "teardowns.txt").read_text().splitlines()
    assert lines == [f"{pid} 1"] * 4


def test_signals_are_those_of_the_script_again_after_waitress(start: Starter) -> None:
    server = start(script(APPS / "going_on.py"))
    assert server.get("/").json()["serving"] is True
    assert server.stop() == 0
    assert server.stdout.splitlines() == ["SIGINT True", "SIGTERM True", "SIGHUP True", "False"]


def test_serve_off_the_main_thread_is_refused_in_one_line(start: Starter, name: str) -> None:
    done = start.run(script(APPS / "in_thread.py", name))
    assert "from the main thread" in done.assert_one_line_error(1)
