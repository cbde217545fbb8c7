"""A stop loses nothing that was accepted, and is held by nobody who says nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.servers.clients import (
    PATH,
    SERVER_ARGS,
    SLOW,
    Clients,
    is_over,
    is_turned_away,
    load,
    receive,
    send,
)
from tests.servers.serving import (
    Server,
    Starter,
    as_nobody,
    await_that,
    serve_prod,
    without_net_admin,
)

HEALTH_PORT = {"NOW_LMS_HEALTH_PORT": "0"}
"""With it a test can wait until every worker is ready."""
BIG_BYTES = 20 * 1024 * 1024
NOT_HELD_SECONDS = 12
"""Far below the graceful timeout of 30 s, far above the second that silence may hold a stop."""

StartedBy = Callable[[list[str]], list[str]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="filters listeners as Linux can")

needs_root = pytest.mark.skipif(
    shutil.which("setpriv") is None or os.geteuid() != 0, reason="only root can drop privileges"
)


def as_is(command: list[str]) -> list[str]:
    return command


def start_slow(start: Starter, *args: str, **environ: str) -> Server:
    return start(serve_prod(*args, app=SLOW), None, **PATH, **environ)


def await_here(server: Server, *names: str) -> None:
    """Wait until requests are running."""
    await_that(lambda: all((server.folder / f"{n}.here").exists() for n in names), f"{names} run")


def count_here(server: Server) -> int:
    return len(list(server.folder.glob("*.here")))


def go(server: Server, name: str) -> None:
    (server.folder / f"{name}.go").touch()


def stop_within(server: Server, seconds: float) -> int:
    """Send SIGTERM, and return the exit status; fail if it takes longer."""
    server.signal(signal.SIGTERM)
    return server.process.wait(seconds)


def by_sigterm(server: Server) -> None:
    server.signal(signal.SIGTERM)


def by_ctrl_c(server: Server) -> None:
    server.signal_group(signal.SIGINT)


def by_control_group(server: Server) -> None:
    """Do as systemd does with its default KillMode: every process gets the signal."""
    server.signal_group(signal.SIGTERM)


@pytest.mark.parametrize(
    ("slots", "ask_to_stop"),
    [
        ("waitress", by_sigterm),
        ("sync", by_sigterm),
        ("gthread-2x2", by_sigterm),
        ("waitress", by_ctrl_c),
        ("sync", by_ctrl_c),
        ("sync", by_control_group),
    ],
)
def test_running_and_queued_requests_are_answered(
    start: Starter, connect: Clients, slots: str, ask_to_stop: Callable[[Server], None]
) -> None:
    """4 + 4 requests on 4 slots, 8 of 8, exit 0."""
    server = start_slow(start, *SERVER_ARGS[slots], **HEALTH_PORT).await_ready()
    clients = hold_and_queue(server, connect)
    ask_to_stop(server)
    await_that(lambda: is_turned_away(server.urls[0], server.folder), "the stop has begun")
    assert answers_of(server, clients) == [200] * 8
    assert server.wait() == 0
    assert "Traceback" not in server.stderr
    assert server.members() == []


def hold_and_queue(server: Server, connect: Clients) -> list[socket.socket]:
    """Have four requests running and four more queued."""
    clients = [connect(server) for _ in range(8)]
    for number, client in enumerate(clients):
        send(client, f"/hold?name={number}")
    await_that(lambda: count_here(server) == 4, "four requests running")
    return clients


def answers_of(server: Server, clients: list[socket.socket]) -> list[int]:
    for number in range(len(clients)):
        go(server, str(number))
    return [receive(client).status for client in clients]


@needs_root
def test_what_was_queued_is_answered_without_the_right_to_filter(
    start: Starter, connect: Clients, kind: str
) -> None:
    command = without_net_admin(serve_prod(*SERVER_ARGS[kind], app=SLOW))
    server = start(command, None, **PATH, **HEALTH_PORT).await_ready()
    clients = hold_and_queue(server, connect)
    server.signal(signal.SIGTERM)
    await_that(lambda: is_turned_away(server.urls[0], server.folder), "the stop has begun")
    assert answers_of(server, clients) == [200] * 8
    assert server.wait() == 0


@pytest.mark.parametrize("slots", ["waitress", "sync", "gthread-1x4"])
def test_second_ctrl_c_stops_at_once(start: Starter, connect: Clients, slots: str) -> None:
    """Neither what runs nor what is queued holds it."""
    server = start_slow(start, *SERVER_ARGS[slots])
    clients = [connect(server) for _ in range(6)]
    for number, client in enumerate(clients):
        send(client, f"/sleep?seconds=20&name={number}")
    await_that(lambda: count_here(server) == 4, "four requests running")
    server.signal_group(signal.SIGINT)
    await_that(lambda: is_turned_away(server.urls[0], server.folder), "the stop has begun")
    assert server.process.poll() is None
    server.signal_group(signal.SIGINT)
    server.process.wait(NOT_HELD_SECONDS)
    await_that(lambda: server.members() == [], "the process group is gone", NOT_HELD_SECONDS)
    assert count_here(server) == 4


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "unix:stop.sock"])
def test_connection_after_the_stop_has_begun_is_turned_away(
    start: Starter, connect: Clients, either: str, bind: str
) -> None:
    server = start_slow(start, *SERVER_ARGS[either], "--bind", bind)
    running = connect(server)
    send(running, "/hold?name=running")
    await_here(server, "running")
    server.signal(signal.SIGTERM)
    await_that(lambda: is_turned_away(server.urls[0], server.folder), "the stop has begun")
    for _ in range(3):
        assert is_turned_away(server.urls[0], server.folder)
    go(server, "running")
    assert receive(running).status == 200
    assert server.wait() == 0


@pytest.mark.parametrize(
    "started_by",
    [
        pytest.param(as_is, id="as is"),
        pytest.param(without_net_admin, marks=needs_root, id="without CAP_NET_ADMIN"),
        pytest.param(as_nobody, marks=needs_root, id="nobody"),
    ],
)
def test_continuous_load_loses_nothing(start: Starter, kind: str, started_by: StartedBy) -> None:
    """12 clients: some connect for each request, some keep their connection."""
    start.folder.chmod(0o777)
    server = start(started_by(serve_prod(*SERVER_ARGS[kind], app=SLOW)), None, **PATH)
    with load(server, [False, True] * 6) as clients:
        await_that(lambda: clients.answered >= 100, "load")
        server.signal(signal.SIGTERM)
    assert clients.lost == []
    assert clients.turned_away == 12
    assert server.wait() == 0
    assert "Traceback" not in server.stderr


def test_continuous_load_loses_nothing_when_all_processes_are_signalled(
    start: Starter, kind: str
) -> None:
    """A worker can learn of the stop before the master does."""
    workers = {"waitress": 0, "sync": 4, "gthread-2x2": 2}[kind]
    server = start_slow(start, *SERVER_ARGS[kind])
    server.wait_for_line("Booting worker", count=workers)
    with load(server, [False, True] * 6) as clients:
        await_that(lambda: clients.answered >= 100, "load")
        server.signal_group(signal.SIGTERM)
    assert clients.lost == []
    assert server.wait() == 0
    assert len(server.booted_pids) == workers


def test_continuous_load_on_a_unix_socket_loses_nothing(start: Starter, kind: str) -> None:
    server = start_slow(start, *SERVER_ARGS[kind], "--bind", "unix:load.sock")
    with load(server, [False, True] * 6) as clients:
        await_that(lambda: clients.answered >= 100, "load")
        server.signal(signal.SIGTERM)
    assert clients.lost == []
    assert clients.turned_away == 12
    assert server.wait() == 0
    assert not (server.folder / "load.sock").exists()


SILENCES = (
    b"",
    b"GET / HTTP/1.1\r\nHost: te",
    b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nhalf",
)


@pytest.mark.parametrize(
    ("slots", "bind"),
    [
        ("waitress", "127.0.0.1:0"),
        ("sync", "127.0.0.1:0"),
        ("gthread-2x2", "127.0.0.1:0"),
        ("gthread-2x2", "unix:silent.sock"),
    ],
)
def test_silent_client_does_not_hold_the_stop(
    start: Starter, connect: Clients, slots: str, bind: str
) -> None:
    """Silent, with half the headers, half the body; more than slots, so some are still queued."""
    server = start_slow(start, *SERVER_ARGS[slots], "--bind", bind)
    for number in range(6):
        connect(server).sendall(SILENCES[number % 3])
    assert stop_within(server, NOT_HELD_SECONDS) == 0
    assert server.members() == []


def test_idle_kept_alive_connection_does_not_hold_the_stop(
    start: Starter, connect: Clients, kind: str
) -> None:
    server = start_slow(start, *SERVER_ARGS[kind])
    clients = [connect(server) for _ in range(6)]
    for client in clients:
        send(client, "/", close=False)
        assert receive(client).status == 200
    assert stop_within(server, NOT_HELD_SECONDS) == 0


@pytest.mark.parametrize("slots", ["waitress", "sync", "gthread-1x4"])
def test_client_that_does_not_close_after_its_response_does_not_hold_the_stop(
    start: Starter, connect: Clients, slots: str
) -> None:
    """Gunicorn waits for the client's end of a closed connection, 2 s each."""
    server = start_slow(start, *SERVER_ARGS[slots])
    running = [connect(server) for _ in range(4)]
    for number, client in enumerate(running):
        send(client, f"/hold?name={number}")
    await_that(lambda: count_here(server) == 4, "four requests running")
    queued = [connect(server) for _ in range(12)]
    for client in queued:
        send(client, "/")
    server.signal(signal.SIGTERM)
    for number in range(4):
        go(server, str(number))
    assert [receive(client).status for client in (*running, *queued)] == [200] * 16
    assert server.process.wait(NOT_HELD_SECONDS) == 0


def test_slow_reader_gets_its_whole_response(start: Starter, connect: Clients, kind: str) -> None:
    server = start_slow(start, *SERVER_ARGS[kind])
    client = connect(server)
    send(client, "/big")
    received = client.recv(65536)
    server.signal(signal.SIGTERM)
    await_that(lambda: is_turned_away(server.urls[0], server.folder), "the stop has begun")
    while chunk := client.recv(1 << 20):
        received += chunk
        time.sleep(0.1)
    assert len(received.partition(b"\r\n\r\n")[2]) == BIG_BYTES
    assert server.wait() == 0


@pytest.mark.parametrize(
    ("slots", "bind"),
    [
        ("waitress", "127.0.0.1:0"),
        ("sync", "127.0.0.1:0"),
        ("sync", "unix:steady.sock"),
        ("gthread-2x2", "127.0.0.1:0"),
        ("gthread-2x2", "unix:steady.sock"),
    ],
)
def test_upload_is_completed_that_is_slow_but_steady_or_read_late(
    start: Starter, connect: Clients, slots: str, bind: str
) -> None:
    """Who sends, or waits for the app to read, is not silent."""
    server = start_slow(start, *SERVER_ARGS[slots], "--bind", bind)
    steady, late = connect(server), connect(server)
    steady.sendall(upload_head(1000) + b"x" * 100)
    late.sendall(upload_head(BIG_BYTES, "?seconds=2"))
    with ThreadPoolExecutor(1) as pool:
        late_sent = pool.submit(late.sendall, b"x" * BIG_BYTES)
        await_here(server, "upload")
        server.signal(signal.SIGTERM)
        for _ in range(9):
            time.sleep(0.25)
            steady.sendall(b"x" * 100)
        assert receive(steady).json() == {"received": 1000}
        late_sent.result()
    assert receive(late).json() == {"received": BIG_BYTES}
    assert server.wait() == 0


def upload_head(length: int, query: str = "") -> bytes:
    head = f"POST /upload{query} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
    return head.encode()


@pytest.mark.parametrize("slots", ["waitress", "sync", "gthread-1x4"])
def test_request_longer_than_the_graceful_timeout_is_ended(
    start: Starter, connect: Clients, slots: str
) -> None:
    server = start_slow(start, *SERVER_ARGS[slots], NOW_LMS_GRACEFUL_TIMEOUT="2")
    client = connect(server)
    send(client, "/sleep?seconds=25&name=long")
    await_here(server, "long")
    assert stop_within(server, NOT_HELD_SECONDS) == 0
    assert is_over(client)
    assert server.members() == []


@pytest.mark.parametrize("graceful_timeout", ["0", "1"])
def test_short_graceful_timeout_of_waitress_is_kept_to(
    start: Starter, connect: Clients, graceful_timeout: str
) -> None:
    server = start_slow(start, *SERVER_ARGS["waitress"], NOW_LMS_GRACEFUL_TIMEOUT=graceful_timeout)
    clients = [connect(server) for _ in range(6)]
    for number, client in enumerate(clients):
        send(client, f"/sleep?seconds=25&name={number}")
    await_that(lambda: count_here(server) == 4, "four requests running")
    assert stop_within(server, NOT_HELD_SECONDS) == 0
    assert all(map(is_over, clients))
    assert count_here(server) == 4
    assert "Traceback" not in server.stderr


def test_full_waitress_takes_the_queue_nevertheless(start: Starter, connect: Clients) -> None:
    """At its limit of connections the rest is queued in the kernel: idle ones make room."""
    config = {"WORKERSIZE_WAITRESS_OPTIONS": {"connection_limit": 12}}
    server = start(serve_prod("--threads", "4", app=SLOW), config, **PATH)
    idle = [connect(server) for _ in range(6)]
    for client in idle:
        send(client, "/", close=False)
        assert receive(client).status == 200
    clients = [connect(server) for _ in range(20)]
    for number, client in enumerate(clients):
        send(client, f"/sleep?seconds=0.3&name={number}")
    server.wait_for_line("connections reached the connection limit")
    server.signal(signal.SIGTERM)
    assert [receive(client).status for client in clients] == [200] * 20
    assert server.wait() == 0


@pytest.mark.parametrize("slots", ["sync", "gthread-1x4"])
def test_recycled_worker_does_not_drain_and_loses_nothing(start: Starter, slots: str) -> None:
    """The queue belongs to the others: a worker that empties it would not come to its end."""
    server = start_slow(start, *SERVER_ARGS[slots])
    server.wait_for_line("Booting worker", count=4 if slots == "sync" else 1)
    with load(server, [False, True] * 6) as clients:
        await_that(lambda: clients.answered >= 100, "load")
        for pid in server.booted_pids[:2]:
            psutil.Process(pid).terminate()
        for pid in server.booted_pids[:2]:
            await_that(lambda pid=pid: not psutil.pid_exists(pid), f"{pid} is gone")  # type: ignore[misc]
        answered = clients.answered
        await_that(lambda: clients.answered >= answered + 100, "the server goes on")
        server.signal(signal.SIGTERM)
    assert clients.lost == []
    assert server.wait() == 0


@pytest.mark.parametrize("slots", ["sync", "gthread-2x2"])
def test_workers_that_end_by_max_requests_lose_nothing(start: Starter, slots: str) -> None:
    config = {"WORKERSIZE_GUNICORN_OPTIONS": {"max_requests": 40}}
    server = start(serve_prod(*SERVER_ARGS[slots], app=SLOW), config, **PATH)
    with load(server, [False] * 12) as clients:
        server.wait_for_line("Autorestarting worker", count=6)
        server.signal(signal.SIGTERM)
    assert clients.lost == []
    assert server.wait() == 0


@pytest.mark.parametrize("slots", ["sync", "gthread-1x4"])
def test_stop_while_a_worker_is_being_recycled_loses_nothing(
    start: Starter, connect: Clients, slots: str
) -> None:
    """The only worker is on its way out, with a request running, when the server stops."""
    server = start_slow(start, *SERVER_ARGS[slots], "--workers", "1")
    running = connect(server)
    send(running, "/hold?name=running")
    await_here(server, "running")
    psutil.Process(server.booted_pids[0]).terminate()
    time.sleep(0.5)
    queued = [connect(server) for _ in range(3)]
    for client in queued:
        send(client, "/")
    server.signal(signal.SIGTERM)
    await_that(lambda: is_turned_away(server.urls[0], server.folder), "the stop has begun")
    go(server, "running")
    assert [receive(client).status for client in (running, *queued)] == [200] * 4
    assert server.wait() == 0
