"""What one request, or one worker, does to itself does not reach the others."""

from __future__ import annotations

import http.client
import sys
from urllib.parse import quote

import pytest

from tests.servers.apps.raising import KINDS
from tests.servers.clients import PATH
from tests.servers.serving import CONF, Server, Starter, gunicorn, serve_prod

RAISING = "raising:create_app"
ONE_WORKER = {
    "waitress": serve_prod("--threads", "2", app=RAISING),
    "sync": serve_prod("--workers", "1", server="gunicorn", app=RAISING),
    "gthread": serve_prod("--workers", "1", "--threads", "2", server="gunicorn", app=RAISING),
    "direct": gunicorn(
        "-c", CONF, "--workers", "1", "--threads", "2", app=f"{RAISING}()"
    ),
}  # fmt: skip

EXPECTED = {
    "view": "500",
    "first": "500",
    "middle": "cut",
    "close": "200 or cut",
    "file": "500",
    "seekable file": "500 or cut",
}
"""Where the app raises, and what the client gets."""


def outcome(server: Server, kind: str, place: str) -> str:
    try:
        return str(server.get(f"/raise?kind={kind}&place={quote(place)}").status)
    except (http.client.HTTPException, ConnectionError):
        return "cut"


@pytest.mark.parametrize("served_by", ONE_WORKER)
def test_whatever_an_app_raises_ends_that_request_alone(start: Starter, served_by: str) -> None:
    """One such request ended a whole gthread server, or held the stop of waitress."""
    server = start(ONE_WORKER[served_by], NOW_LMS_GRACEFUL_TIMEOUT="100")
    pid = server.get("/").json()["pid"]
    for kind in KINDS:
        for place, expected in EXPECTED.items():
            assert outcome(server, kind, place) in expected, f"{kind}, {place}"
            assert server.get("/").json()["pid"] == pid, f"{kind}, {place}"
    # What a server believes to run would hold it for longer than the test waits.
    assert server.stop() == 0
    assert "OwnError in the app" in server.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run there")
@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "CancelledError"])
def test_worker_that_cannot_load_the_app_fails_like_any_other(start: Starter, kind: str) -> None:
    """It ran the stop of the master, in its own process."""
    environ = {"NOW_LMS_PRELOAD": "off", "RAISING_AT_LOAD": kind}
    done = start.run(ONE_WORKER["direct"], **environ)
    assert done.status == 3
    assert "Worker failed to boot" in done.stderr
    assert f"{kind} in the app" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run there")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_worker_that_was_ready_has_not_failed_to_boot(start: Starter, threads: str) -> None:
    """With the two statuses by which gunicorn knows a worker that has."""
    size = ["--workers", "1", "--threads", threads]
    server = start(serve_prod(*size, server="gunicorn", app=RAISING), NOW_LMS_HEALTH_PORT="0")
    for number, status in enumerate(["3", "4", "3"], 1):
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            server.get(f"/exit?status={status}")
        assert server.get("/").json()["pid"] not in server.booted_pids[:number]
        report = server.live_report()
        assert report["crashed"] == report["restarts"] == number
    assert server.stop() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run there")
def test_worker_whose_hook_raises_does_not_run_the_masters_stop(start: Starter) -> None:
    """It would stop the others, and fork workers of its own."""
    options = {"worker_exit": "named_hooks.worker_exit", "max_requests": 3}
    command = serve_prod("--workers", "2", server="gunicorn")
    config = {"WORKERSIZE_GUNICORN_OPTIONS": options}
    server = start(command, config, **PATH)
    for _ in range(12):
        assert server.get("/").status == 200
    assert "Shutting down: Master" not in server.stderr
    assert server.stop() == 0
