"""The example app, served as the README says."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers.serving import Server, Starter, clean_environ, serve_prod

pytest.importorskip("flask_sqlalchemy", reason="the example app needs Flask-SQLAlchemy")

PROJECT = Path(__file__).parents[2]
BROWSER = [("Accept", "text/html")]


def served(start: Starter, command: list[str], **environ: str) -> Server:
    """Start the example on a database of the test's own."""
    database = f"sqlite:///{start.folder / 'lms.sqlite3'}"
    paths = [str(PROJECT), clean_environ({})["PYTHONPATH"]]
    return start(
        command,
        None,
        EXAMPLE_DATABASE_URI=database,
        NOW_LMS_HOST="127.0.0.1",
        NOW_LMS_PORT="0",
        PYTHONPATH=":".join(paths),
        **environ,
    )


def test_pages_of_the_example_are_served(start: Starter, name: str) -> None:
    server = served(start, serve_prod("--workers", "2", server=name, app="example_app"))
    profile_location = server.get("/", BROWSER)
    assert profile_location.status == 200
    assert b'href="/courses/' in profile_location.body
    assert server.get("/courses/serving-python/1", BROWSER).status == 200
    assert server.get("/lab/compute?ms=1").json()["process_id"] != 0
    assert server.get("/_health/capacity").json()["serving"] is True
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_first_start_of_many_workers_that_load_the_app_fills_the_database_once(
    start: Starter,
) -> None:
    """Under plain gunicorn each of them runs the set-up, at the same moment."""
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-w", "4"]
    server = served(start, [*command, "example_app:create_app()"])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.get("/", BROWSER), range(16)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body.count(b'href="/courses/') for answer in answers}) == 1
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize(
    "command",
    [["-m", "example_app.run"], [str(PROJECT / "example_app" / "run.py")]],
    ids=["module", "file"],
)
def test_run_py_of_the_example_serves_it(start: Starter, name: str, command: list[str]) -> None:
    server = served(
        start, [sys.executable, *command], NOW_LMS_WSGI_SERVER=name, NOW_LMS_WORKERS="1"
    )
    assert server.get("/", BROWSER).headers["Server"] == name
    assert server.get("/_health/capacity").json()["server"] == name
    assert server.stop() == 0
