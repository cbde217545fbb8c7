"""/_health/capacity of a real server: whose plan it is, and whether it holds."""

from __future__ import annotations

import json

import pytest

from tests.servers.serving import CONF, Starter, ask, flask, gunicorn, serve_prod

URL = "/_health/capacity"


def test_report_is_json_that_nobody_stores_and_that_sets_no_cookie(
    start: Starter, name: str
) -> None:
    server = start(serve_prod("--workers", "1", server=name))
    answer = server.get(URL)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Set-Cookie"] is None
    assert answer.json()["serving"] is True
    assert answer.json()["status"] == "pass"
    assert "sources" not in answer.json()


def test_head_answers_the_same_headers_without_a_body(start: Starter, name: str) -> None:
    """The connection stays in step: the next request on it is answered."""
    server = start(serve_prod("--workers", "1", "--threads", "2", server=name))
    connection = server.connect()
    try:
        head = ask(connection, URL, "HEAD")
        got = ask(connection, URL)
    finally:
        connection.close()
    assert head.status == 200
    assert head.body == b""
    assert head.headers["Content-Length"] == str(len(got.body))
    assert got.json()["server"] == name


@pytest.mark.parametrize("token", ["s3cret", "größer"])
def test_token_opens_the_details_and_is_never_said(start: Starter, name: str, token: str) -> None:
    server = start(serve_prod("--workers", "1", server=name), NOW_LMS_HEALTH_TOKEN=token)
    sent = token.encode().decode("latin-1")
    seen = server.get("/").json()["pid"]
    opened = server.get(URL, [("Authorization", f"Bearer {sent}")]).json()
    assert opened["pid"] == seen
    assert opened["sources"]["worker_memory_mb"] == "default"
    for header in (f"Bearer {sent}x", f"Basic {sent}", sent, "Bearer "):
        assert "pid" not in server.get(URL, [("Authorization", header)]).json()
    server.stop()
    assert token not in server.stdout + server.stderr + json.dumps(opened)


def test_plan_that_does_not_fit_warns_with_status_200(start: Starter, name: str) -> None:
    server = start(serve_prod("--workers", "1", "--worker-memory-mb", "10000000", server=name))
    assert server.get(URL).json()["status"] == "warn"


@pytest.mark.parametrize(
    "command",
    [flask("run", "--port", "0"), gunicorn(), gunicorn("--workers", "2", "--threads", "2")],
    ids=["flask run", "gunicorn", "gunicorn 2 × 2"],
)
def test_process_that_we_did_not_launch_says_so_and_what_would_be_planned(
    start: Starter, command: list[str]
) -> None:
    server = start(command, NOW_LMS_THREADS="3")
    found = server.get(URL).json()
    assert found["serving"] is False
    assert (found["server"], found["threads"]) == ("waitress", 3)


@pytest.mark.parametrize("served", ["first", "second"])
@pytest.mark.parametrize("launcher", ["gunicorn", "waitress"])
def test_plan_of_the_launcher_belongs_to_the_served_app_only(
    start: Starter, launcher: str, served: str
) -> None:
    server = start(serve_prod("--workers", "2", server=launcher, app=f"two_apps:{served}"))
    reports = server.get("/both").json()["reports"]
    assert {name for name, report in reports.items() if report["serving"]} == {served}
    memory = {name: report["worker_memory_mb"] for name, report in reports.items()}
    assert memory == {"first": 111, "second": 222}


@pytest.mark.parametrize("preload", ["on", "off"])
def test_direct_gunicorn_serves_every_app_of_its_workers_under_its_plan(
    start: Starter, preload: str
) -> None:
    """It is not told which one it serves: a middleware may have mounted them all."""
    environ = {"NOW_LMS_WORKERS": "2", "NOW_LMS_PRELOAD": preload}
    server = start(gunicorn("-c", CONF, app="two_apps:first"), **environ)
    for report in server.get("/both").json()["reports"].values():
        assert (report["serving"], report["worker_memory_mb"]) == (True, 200)
