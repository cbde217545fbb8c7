"""NOW_LMS_DRAIN_SECONDS: /ready says no at once, and the server goes on serving for a while."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tests.servers.clients import PATH, SERVER_ARGS, SLOW
from tests.servers.serving import CONF, Server, Starter, await_that, gunicorn, serve_prod
from tests.servers.test_killed import load

ON = {"NOW_LMS_HEALTH_PORT": "0"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to wait for")


def start_draining(start: Starter, kind: str, seconds: int) -> Server:
    command = serve_prod(*SERVER_ARGS[kind], app=SLOW)
    return start(command, None, **PATH, **ON, NOW_LMS_DRAIN_SECONDS=str(seconds)).await_ready()


def not_ready(server: Server) -> bool:
    return server.probe("/ready").status == 503


@pytest.mark.parametrize("kind", ["waitress", "sync"])
def test_balancer_that_looks_at_ready_loses_no_request(start: Starter, kind: str) -> None:
    """A load of new connections that stops one second after /ready turned."""
    server = start_draining(start, kind, 3)
    with load(server) as outcome:
        server.signal(signal.SIGTERM)
        await_that(lambda: not_ready(server), "draining")
        assert b'"draining"' in server.probe("/ready").body
        assert server.probe("/live").status == 200
        assert server.live_report()["draining"] is True
        before = outcome.answered
        time.sleep(1)
        assert outcome.answered > before
    assert outcome.failed == []
    assert server.wait() == 0
    assert server.members() == []
    assert server.stderr.count("Draining for 3 s") == 1


@pytest.mark.parametrize("kind", ["waitress", "sync"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_drain_and_not_what_runs(
    start: Starter, kind: str, second: signal.Signals
) -> None:
    server = start_draining(start, kind, 300)
    server.signal(signal.SIGTERM)
    await_that(lambda: not_ready(server), "draining")
    running = server.connect()
    running.request("GET", "/hold?name=h")
    await_that((server.folder / "h.here").exists, "runs")
    server.signal(second)
    (server.folder / "h.go").touch()
    assert running.getresponse().status == 200
    running.close()
    assert server.wait() == 0


@pytest.mark.parametrize("kind", ["waitress", "sync"])
def test_ctrl_c_does_not_drain(start: Starter, kind: str) -> None:
    server = start_draining(start, kind, 300)
    server.signal_group(signal.SIGINT)
    assert server.wait() == 0


def test_worker_that_dies_while_draining_is_replaced(start: Starter) -> None:
    server = start_draining(start, "sync", 300)
    server.signal(signal.SIGTERM)
    await_that(lambda: not_ready(server), "draining")
    os.kill(server.booted_pids[0], signal.SIGKILL)
    server.wait_for_line("Booting worker", count=5)
    assert server.get().status == 200


def test_gunicorn_conf_says_that_it_does_not_drain(start: Starter) -> None:
    command = gunicorn("-c", CONF, "-w", "1", app=f"{SLOW}()")
    server = start(command, None, **PATH, NOW_LMS_DRAIN_SECONDS="5")
    assert server.stderr.count("NOW_LMS_DRAIN_SECONDS needs flask serve-prod") == 1
    assert server.stop() == 0
