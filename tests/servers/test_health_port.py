"""The health port: it answers while every worker is busy, and says how busy."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from waitress.channel import HTTPChannel

from flask_workersize.resources.processes import may_set_nice
from flask_workersize.runtime.deployment import Deployment
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.servers import health_port
from flask_workersize.servers.health_port import HealthPort, ProbeServer
from flask_workersize.sizing.plan import compute_plan
from tests.children import Children, status_of
from tests.health.snapshots import PAST
from tests.plain import load, resources
from tests.seccomp import CAN_FORBID, forbidding
from tests.servers.clients import PATH, SERVER_ARGS, SLOW, Clients, connect_socket, receive, send
from tests.servers.serving import (
    CONF,
    DEADLINE_SECONDS,
    Server,
    Starter,
    await_that,
    gunicorn,
    serve_prod,
)

TOKEN = "a token of the tests"
BEARER = [("Authorization", f"Bearer {TOKEN}")]
ON = {"NOW_LMS_HEALTH_PORT": "0", "NOW_LMS_HEALTH_TOKEN": TOKEN}
LIVE = (
    "workers_alive", "slots", "busy", "utilization", "queued", "served", "busy_seconds",
    "restarts", "crashed", "draining",
)  # fmt: skip

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a queue's length")


def start_probed(start: Starter, *args: str, **environ: str) -> Server:
    """Start the slow app with a health port, and wait until it is ready."""
    return start(serve_prod(*args, app=SLOW), None, **PATH, **ON, **environ).await_ready()


@contextmanager
def held(server: Server, count: int, first: int = 0) -> Iterator[None]:
    """Let as many requests run; they are answered at the end."""
    names = [f"h{first + number}" for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(server.get, f"/hold?name={name}") for name in names]
        try:
            await_that(lambda: all((server.folder / f"{n}.here").exists() for n in names), "held")
            yield
        finally:
            for name in names:
                (server.folder / f"{name}.go").touch()
        assert [answer.result().status for answer in answers] == [200] * count


def connections(process: psutil.Process) -> list[Any]:
    # Before psutil 6 it had another name.
    name = "net_connections" if hasattr(process, "net_connections") else "connections"
    return list(getattr(process, name)())


def figures(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in LIVE}


def test_probes_answer_while_every_slot_is_busy_and_say_so(start: Starter, kind: str) -> None:
    server = start_probed(start, *SERVER_ARGS[kind])
    before = figures(server.live_report())
    assert before["busy"] == 0
    with held(server, 4):
        for path in ("/live", "/ready"):
            assert server.probe(path).json()["status"] == "pass"
        now = figures(server.live_report())
    processes = {"waitress": 1, "sync": 4, "gthread-2x2": 2}[kind]
    assert now == before | {
        "workers_alive": processes,
        "slots": 4,
        "busy": 4,
        "utilization": 1.0,
    }
    await_that(lambda: server.live_report()["busy"] == 0, "free")
    after = figures(server.live_report())
    assert after["served"] == before["served"] + 4
    assert after["busy_seconds"] > before["busy_seconds"]
    assert server.stop() == 0


@linux
@pytest.mark.parametrize("bind", ["127.0.0.1:0", "unix:app.sock"])
def test_queue_counts_who_waits_for_a_slot(
    start: Starter, kind: str, bind: str, connect: Clients
) -> None:
    server = start_probed(start, *SERVER_ARGS[kind], "--bind", bind)
    assert server.live_report()["queued"] == 0
    with held(server, 4):
        waiting = [connect(server) for _ in range(3)]
        for client in waiting:
            send(client, "/")
        await_that(lambda: server.live_report()["queued"] == 3, "three wait")
    for client in waiting:
        assert receive(client).status == 200
    await_that(lambda: server.live_report()["queued"] == 0, "nobody waits")


@linux
def test_queue_is_not_told_where_gunicorns_own_threads_hide_it(start: Starter) -> None:
    command = gunicorn("-c", CONF, "-w", "1", "--threads", "2", app=f"{SLOW}()")
    server = start(command, None, **PATH, **ON).await_ready()
    assert server.live_report()["queued"] is None


def test_every_process_tells_the_same_and_the_one_that_asks_is_not_busy(
    start: Starter, either: str
) -> None:
    server = start_probed(start, *SERVER_ARGS[either])
    with held(server, 2):

        def same() -> bool:
            # An answer is there a moment before the request that asked for it has ended.
            inside = figures(server.live_report())
            told = figures(server.get("/_health/capacity", BEARER).json())
            changing = {"served", "busy_seconds"}
            return {**told, **{k: inside[k] for k in changing}} == inside

        for _ in range(6):
            await_that(same, "the same")


def test_live_figures_need_the_token_on_the_port_of_the_app_and_rows_everywhere(
    start: Starter, name: str
) -> None:
    server = start_probed(start, "--wsgi-server", name)
    assert not set(LIVE) & set(server.get("/_health/capacity").json())
    assert "processes" not in server.live_report()
    for report in (server.live_report(BEARER), server.get("/_health/capacity", BEARER).json()):
        assert set(LIVE) < set(report)
        assert sum(row["slots"] for row in report["processes"]) == report["slots"]


@pytest.mark.parametrize("kind", ["waitress", "sync"])
def test_last_hour_goes_on_if_the_monitor_is_killed(start: Starter, kind: str) -> None:
    server = start_probed(start, *SERVER_ARGS[kind])

    def counted() -> int:
        return sum(point["requests"] for point in server.live_report()["history"])

    def serve(count: int) -> None:
        assert [server.get("/").status for _ in range(count)] == [200] * count

    serve(3)
    await_that(lambda: counted() == 3, "3 requests")
    serve(2)
    server.monitor.kill()
    serve(2)
    await_that(lambda: counted() == 7, "7 requests")
    report = server.live_report()
    assert [event["text"] for event in report["events"]] == ["monitor died (SIGKILL); restarting"]
    assert all(0 <= point["utilization"] < 0.5 for point in report["history"])
    covered = sum(point["seconds"] for point in report["history"])
    assert report["uptime_seconds"] - 10 < covered < report["uptime_seconds"]
    # The restarted monitor may not have had its first ten seconds.
    assert report["rates"] is None or report["rates"]["requests_per_second"] < 10
    assert report["advice"] == []
    # Not for everyone who reaches the app.
    assert PAST.isdisjoint(server.get("/_health/capacity").json())
    told = server.get("/_health/capacity", BEARER).json()
    assert set(told) >= PAST
    assert (told["history"], told["events"]) == (report["history"], report["events"])


def test_worker_that_gunicorn_kills_is_an_event(start: Starter) -> None:
    server = start_probed(start, *SERVER_ARGS["sync"], NOW_LMS_TIMEOUT="1")
    with suppress(OSError), closing(server.connect()) as connection:
        connection.request("GET", "/hold?name=stuck")
        connection.getresponse()
    await_that(lambda: server.live_report()["events"] != [], "an event")
    assert server.live_report()["events"][0]["text"] == "worker killed: no heartbeat for 1 s"


def test_rows_have_the_memory_of_each_worker_and_how_old_it_is(start: Starter, either: str) -> None:
    server = start_probed(start, *SERVER_ARGS[either])

    def rows() -> list[dict[str, Any]]:
        report: dict[str, Any] = server.live_report(BEARER)
        return list(report["processes"])

    def is_right(row: dict[str, Any]) -> bool:
        seen = psutil.Process(row["pid"]).memory_full_info()
        told = (row["rss_mb"], row["pss_mb"])
        # Measured when it was ready, it shared with fewer: it is measured again, in turn.
        return told == pytest.approx((seen.rss / 2**20, seen.pss / 2**20), rel=0.2)

    await_that(lambda: all(row["rss_mb"] for row in rows()), "every worker is measured")
    await_that(lambda: all(map(is_right, rows())), "every worker is measured again")
    for row in rows():
        assert 0 <= row["memory_age_seconds"] <= row["age_seconds"]


def test_metrics_are_one_truth_on_both_ports(start: Starter, name: str) -> None:
    server = start_probed(start, "--wsgi-server", name)

    def metrics(text: bytes) -> dict[str, float]:
        families = text_string_to_metric_families(text.decode())
        return {s.name: s.value for family in families for s in family.samples}

    with held(server, 1):
        inside = metrics(server.probe("/metrics").body)
        outside = metrics(server.get("/_health/capacity/metrics", BEARER).body)
    assert inside["workersize_slots_busy"] == outside["workersize_slots_busy"] == 1
    assert inside.keys() == outside.keys()
    assert server.get("/_health/capacity/metrics").status == 401


def test_streamed_response_is_busy_until_it_is_closed(
    start: Starter, either: str, connect: Clients
) -> None:
    server = start_probed(start, *SERVER_ARGS[either])
    client = connect(server)
    send(client, "/stream")
    assert client.recv(8, socket.MSG_PEEK)
    await_that(lambda: server.live_report()["busy"] == 1, "streams")
    (server.folder / "stream.go").touch()
    assert receive(client).body == b"first second"
    await_that(lambda: server.live_report()["busy"] == 0, "streamed")


def test_file_that_gunicorn_sends_is_busy_until_it_is_sent(
    start: Starter, connect: Clients
) -> None:
    server = start_probed(start, *SERVER_ARGS["sync"])
    client = connect(server)
    send(client, "/file")
    assert client.recv(8, socket.MSG_PEEK)
    await_that(lambda: server.live_report()["busy"] == 1, "sends")
    assert len(receive(client).body) == 20 * 1024 * 1024
    await_that(lambda: server.live_report()["busy"] == 0, "sent")


def test_starting_is_live_and_not_ready(start: Starter) -> None:
    server = start.launch(
        serve_prod("--workers", "1", server="gunicorn", app=SLOW), None, **PATH, **ON,
        NOW_LMS_PRELOAD="off", SLOW_WORKER="1",
    )  # fmt: skip
    server.wait_for_line("Health port on")
    await_that((server.folder / "worker.here").exists, "loading")
    assert server.probe("/ready").status == 503
    assert server.probe("/live").status == 200
    (server.folder / "worker.go").touch()
    server.await_ready()


@pytest.mark.parametrize("kind", ["waitress", "gthread-1x4"])
def test_worker_that_makes_no_progress_is_not_live(start: Starter, kind: str) -> None:
    server = start_probed(start, *SERVER_ARGS[kind], NOW_LMS_TIMEOUT="1")
    with held(server, 4):
        await_that(lambda: server.probe("/live").status == 503, "stuck")
        assert b'"workers_stuck":1' in server.probe("/live").body
    await_that(lambda: server.probe("/live").status == 200, "goes on")


def test_one_stuck_worker_of_two_shows_and_is_no_reason_to_start_again(start: Starter) -> None:
    server = start_probed(
        start, "--wsgi-server", "gunicorn", "--workers", "2", "--threads", "2", NOW_LMS_TIMEOUT="2"
    )
    busiest: list[int] = []
    number = 0
    with ThreadPoolExecutor(8) as pool:
        while max(busiest, default=0) < 2:
            pool.submit(server.get, f"/hold?name=n{number}")
            await_that((server.folder / f"n{number}.here").exists, "holds")
            number += 1
            busiest = [row["busy"] for row in server.live_report(BEARER)["processes"]]
        assert min(busiest) < 2
        await_that(lambda: server.probe("/live").json()["workers_stuck"] == 1, "one stuck")
        for done in range(number):
            (server.folder / f"n{done}.go").touch()


def test_slow_and_malformed_clients_disturb_neither_port(
    start: Starter, name: str, connect: Clients
) -> None:
    server = start_probed(start, "--wsgi-server", name)
    silent = [connect(server, server.health_url) for _ in range(100)]
    for client in silent[::2]:
        client.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nX-Endless: ")
    assert server.probe("/live").status == 200
    endless = connect(server, server.health_url)
    endless.settimeout(10)
    with pytest.raises(OSError):  # noqa: PT012, PT011 - wherever it is cut off
        for _ in range(1000):
            endless.sendall(b"X-Endless: " + b"x" * 4096 + b"\r\n")
            time.sleep(0.001)
    for rubbish in (b"\x00\xff\x16\x03\x01\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n"):
        connect(server, server.health_url).sendall(rubbish)
    big = connect(server, server.health_url)
    big.sendall(b"POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    assert receive(big).status == 413
    assert server.probe("/ready").status == 200
    assert server.get().status == 200
    assert "Traceback" not in server.stderr


def test_health_port_says_what_it_has_and_takes_only_get(start: Starter) -> None:
    server = start_probed(start)
    answer = server.probe("/")
    assert answer.status == 404
    assert b"/live" in answer.body
    assert server.get("/live", method="POST", url=server.health_url).status == 405
    head = server.get("/live", method="HEAD", url=server.health_url)
    assert (head.status, head.body) == (200, b"")
    assert "Server" not in head.headers


@pytest.mark.parametrize("preload", ["on", "off"])
def test_monitor_holds_no_port_of_the_app_and_workers_none_of_its(
    start: Starter, preload: str
) -> None:
    server = start_probed(start, *SERVER_ARGS["sync"], NOW_LMS_PRELOAD=preload)
    app, health = (int(url.rpartition(":")[2]) for url in (server.urls[0], server.health_url))

    def ports(process: psutil.Process) -> set[int]:
        return {c.laddr.port for c in connections(process) if c.status == "LISTEN"}

    assert ports(server.monitor) == {health}
    assert [ports(psutil.Process(pid)) for pid in server.booted_pids] == [{app}] * 4


def test_monitor_beside_waitress_holds_no_port_and_no_connection_of_the_app(
    start: Starter, connect: Clients
) -> None:
    server = start_probed(start, "--wsgi-server", "waitress")
    client = connect(server)
    send(client, "/", close=False)
    receive(client)
    health = int(server.health_url.rpartition(":")[2])

    def ports() -> set[int]:
        seen = connections(server.monitor)
        return {c.laddr.port for c in seen if c.status in ("LISTEN", "ESTABLISHED")}

    assert ports() == {health}
    first = server.monitor.pid
    server.monitor.kill()
    await_that(lambda: server.probe("/live").status == 200, "there again")
    assert server.monitor.pid != first
    assert ports() == {health}


def test_gunicorn_conf_has_the_same_port(start: Starter) -> None:
    server = start(gunicorn("-c", CONF, "-w", "2", app=f"{SLOW}()"), None, **PATH, **ON)
    server.await_ready()
    with held(server, 2):
        assert server.live_report()["utilization"] == 1.0
    report = server.live_report(BEARER)
    assert {row["pid"] for row in report["processes"]} == set(server.booted_pids)
    assert server.stop() == 0
    assert server.members() == []


def test_reload_and_more_workers_are_followed(start: Starter) -> None:
    server = start_probed(start, "--wsgi-server", "gunicorn", "--workers", "2")
    server.get()
    old = set(server.booted_pids)
    server.signal(signal.SIGHUP)
    server.wait_for_line("Booting worker", count=4)

    def pids() -> set[int]:
        return {row["pid"] for row in server.live_report(BEARER)["processes"]}

    await_that(lambda: pids() == set(server.booted_pids) - old, "the new ones")
    report = server.live_report()
    assert (report["workers_alive"], report["restarts"], report["crashed"]) == (2, 2, 0)
    assert report["served"] == 1
    server.signal(signal.SIGTTIN)
    await_that(lambda: server.live_report()["workers_alive"] == 3, "one more")


def test_port_in_use_is_one_line_and_nothing_is_left(start: Starter, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        finished = start.run(serve_prod(server=name), NOW_LMS_HEALTH_PORT=port)
        line = finished.assert_one_line_error(1)
        assert "NOW_LMS_HEALTH_PORT" in line
        app = start.run(serve_prod("--port", port, server=name), **ON)
        assert "in use" in app.assert_one_line_error(1)
    assert [server.members() for server in start.servers] == [[], []]


@pytest.mark.skipif(not CAN_FORBID, reason="no filter of system calls is known for this system")
def test_hardened_unit_has_its_monitor_and_its_socket(start: Starter) -> None:
    """``SystemCallFilter=~@resources @privileged`` kills for a priority, and for an owner."""
    command = serve_prod("--workers", "1", "--bind", "unix:app.sock", server="gunicorn", app=SLOW)
    command = forbidding("setpriority,chown", command)
    server = start(command, None, NOW_LMS_HEALTH_HOST="127.0.0.1", **PATH, **ON)
    await_that(lambda: "SIGSYS" in server.stderr or not may_set_nice(-10), "the first monitor")
    server.await_ready()
    assert server.get().status == 200
    assert server.stderr.count("monitor died") <= 1
    assert server.stop() == 0


def teapot(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("418 I'm a Teapot", [])
    return []


def large(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"x" * 1024] * 16384


@pytest.mark.parametrize("app", [teapot, large])
def test_connection_of_the_health_port_lives_so_long_whatever_it_sends_or_reads(
    monkeypatch: pytest.MonkeyPatch, app: Any
) -> None:
    """One that drips its request, and one that does not read the response."""
    monkeypatch.setattr(health_port, "LIFE_SECONDS", 0.5)
    deadline = time.monotonic() + DEADLINE_SECONDS
    listener = socket.create_server(("127.0.0.1", 0))
    server = ProbeServer(app, [listener])
    with socket.create_connection(listener.getsockname(), 30) as client:
        await_that(lambda: channels(server) == 1, "accepted")
        if app is large:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while channels(server):
            assert time.monotonic() < deadline, "it is still open"
            with suppress(OSError):
                client.sendall(b"G")
            time.sleep(0.05)
    server.close()


def channels(server: ProbeServer) -> int:
    return sum(isinstance(item, HTTPChannel) for item in list(server._map.values()))


def test_oldest_connection_of_too_many_goes_and_a_line_names_the_port(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, connect: Clients
) -> None:
    monkeypatch.setattr(health_port, "connection_limit", lambda descriptors_each: 20)
    monkeypatch.setattr(health_port, "LIFE_SECONDS", 3600.0)
    app: Any = teapot
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = ProbeServer(app, [listener])
    clients = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(60)]
    try:
        assert [status_at(port) for _ in range(3)] == [418] * 3
        # As many as came after them.
        assert [client.recv(1) for client in clients[:40]] == [b""] * 40
        assert channels(server) <= 18
    finally:
        for client in clients:
            client.close()
        server.close()
    (line,) = caplog.messages
    assert f"health port http://127.0.0.1:{port}:" in line


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("", True)],
)
def test_start_line_tells_whether_everyone_reaches_the_health_port(
    caplog: pytest.LogCaptureFixture, host: str, is_open: bool
) -> None:
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    environ = {"NOW_LMS_HEALTH_PORT": "0", "NOW_LMS_HEALTH_HOST": host}
    settings = load(environ)
    deployment = Deployment(settings, resources(), compute_plan(settings, resources()))
    port = HealthPort(deployment, Scoreboard(1, 1))
    for listener in port.open():
        listener.close()
    with caplog.at_level("INFO"):
        port.announce()
    (line,) = caplog.messages
    assert line.startswith("Health port on http://")
    assert ("open to all" in line) == is_open


@pytest.mark.parametrize("limit", [None, 500], ids=["our limit", "a limit of the app's"])
def test_flood_under_few_descriptors_is_no_flood_of_lines_and_silences_no_probe(
    start: Starter, limit: int | None
) -> None:
    """On both ports; afterwards the server serves on."""
    config = {"WORKERSIZE_WAITRESS_OPTIONS": {"connection_limit": limit}} if limit else {}
    limited = ["/bin/sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]
    command = [*limited, *serve_prod(server="waitress", app=SLOW)]
    server = start(command, config, **PATH, **ON).await_ready()
    with ExitStack() as stack:
        for url in (server.health_url, server.urls[0]) * 100:
            client = stack.enter_context(connect_socket(url, server.folder))
            client.sendall(b"GET /live HTTP/1.1\r\n")
        assert [server.probe("/live").status for _ in range(5)] == [200] * 5
    assert server.get().status == 200
    assert len(server.stderr.splitlines()) < 20
    assert "Traceback" not in server.stderr
    assert server.stop() == 0


def status_at(port: int) -> int:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().status


def test_probe_server_answers_by_itself_and_closes_its_port_and_connections() -> None:
    app: Any = teapot
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    server = ProbeServer(app, listeners)
    assert [status_at(port) for port in ports] == [418, 418]
    with socket.create_connection(("127.0.0.1", ports[0]), 30) as silent:
        assert status_at(ports[0]) == 418
        server.close()
        assert silent.recv(1) == b""
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            status_at(port)
    assert "workersize-probe" not in {thread.name for thread in threading.enumerate()}


def test_monitor_that_cannot_answer_any_more_makes_room_for_the_next(children: Children) -> None:
    def serve() -> None:
        app: Any = teapot
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = ProbeServer(app, [listener])
            server._map[listener.fileno()] = None
            socket.create_connection(listener.getsockname(), 30)
            time.sleep(60)

    assert status_of(children(serve)) == 1


def test_nothing_is_left_after_a_stop(start: Starter, name: str) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        server = start_probed(start, "--wsgi-server", name)
        server.signal_group(signum)
        assert server.wait() == 0
        assert server.members() == []
        assert "Traceback" not in server.stderr
