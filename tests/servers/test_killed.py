"""Workers, the monitor and the master are killed with -9 under load: what holds nevertheless."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import psutil
import pytest

from tests.servers.clients import PATH, SERVER_ARGS, SLOW, Outcome, at_once
from tests.servers.serving import CONF, Server, Starter, ask, await_that, gunicorn, serve_prod

TOKEN = "a token of the tests"
BEARER = [("Authorization", f"Bearer {TOKEN}")]
ON = {"NOW_LMS_HEALTH_PORT": "0", "NOW_LMS_HEALTH_TOKEN": TOKEN}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")


@contextmanager
def load(server: Server, clients: int = 4, path: str = "/") -> Iterator[Outcome]:
    """Ask again and again, with a new connection each time, until the end of the block."""
    outcome = Outcome()

    def client(over: threading.Event) -> None:
        while not over.is_set():
            connection = server.connect()
            try:
                assert ask(connection, path).status == 200
                outcome.answered += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                outcome.failed.append(repr(error))
                time.sleep(0.01)
            finally:
                connection.close()

    with at_once(client, clients):
        await_that(lambda: outcome.answered > 5 * clients, "a load")
        yield outcome


def start_probed(start: Starter, kind: str, **environ: str) -> Server:
    return start(serve_prod(*SERVER_ARGS[kind], app=SLOW), None, **PATH, **ON, **environ)


def rows(server: Server) -> list[dict[str, Any]]:
    return list(server.live_report(BEARER)["processes"])


def more(outcome: Outcome, count: int = 40) -> None:
    """Wait until so many more requests are answered."""
    before = outcome.answered
    await_that(lambda: outcome.answered >= before + count, "goes on")


@pytest.mark.parametrize("preload", ["on", "off"])
def test_killed_workers_leave_a_table_that_heals(start: Starter, preload: str) -> None:
    server = start_probed(start, "sync", NOW_LMS_PRELOAD=preload).await_ready()
    with load(server) as outcome:
        served = 0
        for number in range(1, 9):
            victim = rows(server)[number % 4]["pid"]
            psutil.Process(victim).kill()
            await_that(lambda: _is_whole(server, number, victim), "replaced")  # noqa: B023
            report = server.live_report()
            assert report["served"] >= served, "totals never go back"
            served = report["served"]
        more(outcome)
        # Each kill takes at most the request that its worker ran.
        assert len(outcome.failed) <= 8
    server.await_ready()
    await_that(lambda: server.live_report()["busy"] == 0, "nothing runs")
    report = server.live_report(BEARER)
    assert report["restarts"] == report["crashed"] == 8
    assert {row["pid"] for row in report["processes"]} <= set(server.booted_pids)
    # Whether the request that a killed worker ran was answered, counted or neither is open.
    assert outcome.answered - 8 <= report["served"] <= outcome.answered + len(outcome.failed)
    assert server.stop() == 0


@pytest.mark.parametrize("kind", ["waitress", "sync"])
def test_killed_monitor_is_started_again_at_once_and_no_request_notices(
    start: Starter, kind: str
) -> None:
    server = start_probed(start, kind).await_ready()
    with load(server) as outcome:
        before = server.live_report()["served"]
        killed = server.monitor.pid
        psutil.Process(killed).kill()
        # Whoever asks meanwhile waits for the next monitor, and is not refused.
        assert server.probe("/live").status == 200
        assert server.live_report()["served"] >= before
        assert server.monitor.pid != killed
        more(outcome)
    assert outcome.failed == []
    assert len(re.findall(r"monitor died \(SIGKILL\); restarting", server.stderr)) == 1
    assert server.stop() == 0
    assert server.members() == []


def test_killed_monitor_of_gunicorn_conf_is_started_again_at_the_next_hook(start: Starter) -> None:
    server = start(gunicorn("-c", CONF, "-w", "2", app=f"{SLOW}()"), None, **PATH, **ON)
    server.await_ready()
    with load(server) as outcome:
        killed = server.monitor.pid
        psutil.Process(killed).kill()
        await_that(lambda: not psutil.pid_exists(killed), "reaped")
        psutil.Process(server.booted_pids[0]).kill()
        server.wait_for_line("Booting worker", count=3)
        assert server.probe("/live").status == 200
        more(outcome)
    assert server.process.poll() is None
    assert server.stop() == 0
    assert server.members() == []


@pytest.mark.parametrize(
    ("kind", "command"),
    [("sync", "serve-prod"), ("gthread-1x4", "serve-prod"), ("sync", "gunicorn_conf")],
)
def test_killed_master_leaves_no_worker_and_its_port_is_free_again(
    start: Starter, kind: str, command: str
) -> None:
    if command == "serve-prod":
        server = start_probed(start, kind).await_ready()
    else:
        size = SERVER_ARGS[kind][2:]
        server = start(gunicorn("-c", CONF, *size, app=f"{SLOW}()"), None, **PATH, **ON)
        server.await_ready()
    ports = [int(url.rpartition(":")[2]) for url in (server.urls[0], server.health_url)]
    with load(server):
        members = server.members()
        server.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        server.process.wait()
        await_that(lambda: all(map(_is_free, ports)), "both ports are free")
        took = time.monotonic() - killed_at
    psutil.wait_procs(members, timeout=10)
    assert server.members() == []
    assert "the master was killed" in server.stderr
    # Half the timeout of gunicorn's workers, which they hold it for without us, is 60 s.
    assert took < 30


def test_workers_end_by_themselves_if_their_master_and_monitor_are_killed_together(
    start: Starter,
) -> None:
    """On each kind of server one runs a request that does not end, the others are idle."""
    direct = gunicorn("-c", CONF, *SERVER_ARGS["sync"][2:], app=f"{SLOW}()")
    servers = [start_probed(start, kind) for kind in ("sync", "gthread-2x2")]
    servers.append(start(direct, None, **PATH, **ON))
    with ExitStack() as stack:
        for number, server in enumerate(servers):
            held = stack.enter_context(closing(server.await_ready().connect()))
            held.request("GET", f"/hold?name={number}")
            await_that((server.folder / f"{number}.here").exists, "holds")
        monitors = [server.monitor for server in servers]
        for server, monitor in zip(servers, monitors, strict=True):
            # Neither may notice the death of the other.
            monitor.suspend()
            server.signal(signal.SIGKILL)
            monitor.kill()
            server.process.wait()
        killed_at = time.monotonic()
        for server in servers:
            await_that(lambda: server.members() == [], "ended")  # noqa: B023
    # gunicorn's own sync workers take 60 s, and what runs in them is not bounded at all.
    assert time.monotonic() - killed_at < 20
    for server in servers:
        assert "the master was killed; ending worker" in server.stderr


def test_killed_master_ends_a_worker_that_does_not_want_to(start: Starter) -> None:
    server = start_probed(start, "sync").await_ready()
    held = server.connect()
    held.request("GET", "/hold?name=h")
    await_that((server.folder / "h.here").exists, "holds")
    server.signal(signal.SIGKILL)
    server.process.wait()
    await_that(lambda: server.members() == [], "ended")
    held.close()


def test_killed_waitress_takes_its_monitor_along(start: Starter) -> None:
    server = start_probed(start, "waitress").await_ready()
    server.signal(signal.SIGKILL)
    server.process.wait()
    await_that(lambda: server.members() == [], "ended")
    assert "master was killed" not in server.stderr


def _is_whole(server: Server, crashed: int, victim: int) -> bool:
    """Return whether so many kills are counted, and the worker has been replaced."""
    report = server.live_report(BEARER)
    ready = [row["pid"] for row in report["processes"] if row["ready"]]
    return report["crashed"] == crashed and len(ready) == 4 and victim not in ready


def _is_free(port: int) -> bool:
    try:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen()
    except OSError:
        return False
    return True
