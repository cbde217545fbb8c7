"""A client that connects and says nothing, or too little, keeps nobody else waiting for long."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from flask_workersize.runtime.polling import wait_readable
from flask_workersize.servers.silence import HEADER_SECONDS
from tests.servers.clients import PATH, SLOW, Clients, is_over, receive, send
from tests.servers.serving import Server, Starter, await_that, serve_prod, starter

HEALTH_PORT = {"NOW_LMS_HEALTH_PORT": "0"}
NOT_HELD_SECONDS = 2 * HEADER_SECONDS
"""Far below every timeout."""

GUNICORN = ["--wsgi-server", "gunicorn", "--workers"]
ARGS = {
    "waitress": ["--wsgi-server", "waitress", "--threads", "2"],
    "sync": [*GUNICORN, "2"],
    "gthread": [*GUNICORN, "1", "--threads", "2"],
}
"""Two slots each."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what waits")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Start each server once, when it is asked for."""
    config = {"WORKERSIZE_WAITRESS_OPTIONS": {"connection_limit": 8}}
    with starter(tmp_path_factory.mktemp("silence")) as start:

        class Started(dict[str, Server]):
            def __missing__(self, kind: str) -> Server:
                command = serve_prod(*ARGS[kind], app=SLOW)
                self[kind] = start(command, config, **PATH, **HEALTH_PORT).await_ready()
                return self[kind]

        yield Started()


@pytest.fixture(params=["sync", "gthread"])
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    """Run the test on each kind of gunicorn's workers."""
    return servers[request.param]


def is_answered(client: socket.socket, within: float = NOT_HELD_SECONDS) -> bool:
    client.settimeout(within)
    return receive(client).status == 200


@pytest.mark.parametrize("kind", ["waitress", "sync", "gthread"])
def test_silent_clients_do_not_make_a_server_deaf(
    servers: dict[str, Server], connect: Clients, kind: str
) -> None:
    """12 of them: more than workers, slots and, with waitress, connections."""
    server = servers[kind]
    silent = [connect(server) for _ in range(12)]
    for client in silent[-4:] if kind == "sync" else []:
        client.sendall(b"GET ")
    if kind == "sync":
        await_that(lambda: server.live_report()["busy"] == 2, "both workers are occupied")
        assert server.live_report()["utilization"] == 1
    client = connect(server)
    send(client, "/")
    assert is_answered(client)
    if kind == "gthread":
        # They hold no thread.
        await_that(lambda: server.live_report()["busy"] == 0, "no slot is occupied")
        send(silent[0], "/")
        assert is_answered(silent[0])


def test_header_that_drips_keeps_nobody_waiting_for_long(server: Server, connect: Clients) -> None:
    """It is waited for as long as nobody waits. A connection that was kept is never closed."""
    is_kept = "--threads" in server.command
    dripping = [connect(server), connect(server)]
    if is_kept:
        kept = connect(server)
        send(kept, "/", close=False)
        assert is_answered(kept)
    begun = time.monotonic()
    for client in dripping:
        client.sendall(b"GET /")
    await_that(lambda: server.live_report()["busy"] == 2, "all slots are occupied")
    while time.monotonic() < begun + HEADER_SECONDS + 0.5:
        drip(dripping)
    assert not wait_readable(dripping, 0)
    waiting = connect(server)
    send(waiting, "/")
    while not wait_readable([waiting], 0):
        drip(dripping)
        assert time.monotonic() < begun + HEADER_SECONDS + NOT_HELD_SECONDS
    assert is_answered(waiting)
    assert any(is_over(client) for client in wait_readable(dripping, 0))
    if is_kept:
        send(kept, "/")
        assert is_answered(kept)


def drip(clients: list[socket.socket]) -> None:
    """Send a byte more, where the server still listens."""
    for client in clients:
        with suppress(ConnectionError):
            client.sendall(b"/")
    time.sleep(0.1)


BODY_BYTES = 8 * 1024 * 1024


def test_client_that_still_sends_gets_an_answer_that_came_early(
    server: Server, connect: Clients
) -> None:
    """Gunicorn reads 64 KiB more, then resets the connection, and the answer is lost."""
    client = connect(server)
    head = f"POST / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {BODY_BYTES}\r\n"
    client.sendall(head.encode() + b"\r\n")
    part = b"x" * (BODY_BYTES // 20)
    for _ in range(20):
        client.sendall(part)
        time.sleep(0.05)
    assert receive(client).status == 405


def test_client_that_does_not_close_holds_nobody(server: Server, connect: Clients) -> None:
    """Gunicorn waits 2 s for each of them, in a worker's only thread or in its loop."""
    for _ in range(6):
        client = connect(server)
        send(client, "/")
        assert is_answered(client, 1.5)
    await_that(lambda: server.live_report()["busy"] == 0, "no worker is occupied", 1.5)


def test_kept_connection_makes_room_with_its_next_response(
    servers: dict[str, Server], connect: Clients
) -> None:
    """At waitress' limit of connections idle ones would keep others out until the timeout."""
    kept = [connect(servers["waitress"]) for _ in range(6)]
    for client in kept:
        send(client, "/", close=False)
        assert receive(client).headers["Connection"] != "close"
    waiting = connect(servers["waitress"])
    send(waiting, "/")
    assert not wait_readable([waiting], 0.5)
    send(kept[0], "/", close=False)
    assert receive(kept[0]).headers["Connection"] == "close"
    assert is_answered(waiting)
    assert not wait_readable(kept[1:], 0)


def test_silent_client_does_not_hold_a_worker_that_is_replaced(
    start: Starter, connect: Clients
) -> None:
    """There is no other worker: nobody is served until it has ended."""
    config = {"GUNICORN_CMD_ARGS": "--max-requests 1", **PATH, **HEALTH_PORT}
    server = start(serve_prod(*GUNICORN, "1", "--threads", "2", app=SLOW), None, **config)
    silent = connect(server.await_ready())
    # One that is quick is still taken by the worker that ends.
    for _ in range(3):
        client = connect(server)
        send(client, "/")
        assert is_answered(client, 4)
    assert is_over(silent)


def test_body_that_drips_is_waited_for(servers: dict[str, Server], connect: Clients) -> None:
    """Its request has begun, whoever waits: the app decides how long it reads."""
    head = (
        b"POST /upload HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n"
    )
    uploading = [connect(servers[kind]) for kind in ("sync", "gthread") for _ in range(2)]
    for client in uploading:
        client.sendall(head)
    waiting = [connect(servers[kind]) for kind in ("sync", "gthread")]
    for client in waiting:
        send(client, "/")
    until, sent = time.monotonic() + HEADER_SECONDS + 1, 0
    while time.monotonic() < until:
        drip(uploading)
        sent += 1
    for client in uploading:
        client.sendall(b"x" * (1000 - sent))
        assert receive(client).json() == {"received": 1000}
    assert all(map(is_answered, waiting))


def test_worker_is_not_killed_because_of_a_silent_client(start: Starter, connect: Clients) -> None:
    """Nobody else waits, but the master does, for the timeout."""
    server = start(serve_prod(*ARGS["sync"], app=SLOW), None, NOW_LMS_TIMEOUT="6", **PATH)
    silent = [connect(server) for _ in range(2)]
    assert all(map(is_over, silent))
    assert server.get().status == 200
    assert len(server.booted_pids) == 2
