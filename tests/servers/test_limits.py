"""What docs/limits.rst says of connections that stay open is so."""

from __future__ import annotations

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers.clients import SERVER_ARGS, Clients, send
from tests.servers.serving import Server, Starter, await_that, serve_prod

SLOTS = 4
HEALTH = {"NOW_LMS_HEALTH_PORT": "0", "NOW_LMS_HEALTH_HOST": "127.0.0.1"}
HANDSHAKE = "/socket.io/?EIO=4&transport="


def start_staying(start: Starter, kind: str, **environ: str) -> Server:
    return start(serve_prod(*SERVER_ARGS[kind], app="staying"), None, **HEALTH, **environ)


def open_stream(connect: Clients, server: Server) -> socket.socket:
    """Return the connection of a stream that has begun."""
    client = connect(server)
    send(client, "/events")
    assert client.recv(15) == b"HTTP/1.1 200 OK"
    return client


def fill(connect: Clients, server: Server) -> list[socket.socket]:
    return [open_stream(connect, server) for _ in range(SLOTS)]


def test_stream_holds_a_slot(start: Starter, connect: Clients, kind: str) -> None:
    """A request beyond the last slot waits until a listener has gone."""
    server = start_staying(start, kind).await_ready()
    streams = fill(connect, server)
    report = server.live_report()
    assert (report["slots"], report["busy"]) == (SLOTS, SLOTS)
    waiting = connect(server)
    send(waiting, "/")
    waiting.settimeout(0.5)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    waiting.settimeout(30)
    # Of every worker: the request may wait in either.
    for stream in streams:
        stream.close()
    assert waiting.recv(15) == b"HTTP/1.1 200 OK"


def test_live_fails_if_every_slot_has_an_older_stream(
    start: Starter, connect: Clients, either: str
) -> None:
    server = start_staying(start, either, NOW_LMS_TIMEOUT="1").await_ready()
    fill(connect, server)
    await_that(lambda: server.probe("/live").status == 503, "/live fails")
    assert json.loads(server.probe("/live").body)["reason"] == "no worker makes progress"


def test_sync_worker_is_ended_while_it_streams(start: Starter, connect: Clients) -> None:
    server = start_staying(start, "sync", NOW_LMS_TIMEOUT="1").await_ready()
    open_stream(connect, server)
    server.wait_for_line(r"WORKER TIMEOUT \(pid:\d+\)")


def test_stop_cuts_off_a_stream(start: Starter, connect: Clients, kind: str) -> None:
    server = start_staying(start, kind, NOW_LMS_GRACEFUL_TIMEOUT="1").await_ready()
    open_stream(connect, server)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_view_that_awaits_holds_a_slot(start: Starter, kind: str) -> None:
    pytest.importorskip("asgiref")
    server = start_staying(start, kind).await_ready()
    with ThreadPoolExecutor(2 * SLOTS) as pool:
        asked = [pool.submit(server.get, "/await") for _ in range(2 * SLOTS)]
        await_that(lambda: server.live_report()["busy"] == SLOTS, "every slot is busy")
        assert not any(answer.done() for answer in asked)
        (server.folder / "over").touch()
        assert {answer.result().body for answer in asked} == {b"over"}


def second_request(server: Server) -> tuple[int, bytes]:
    """Connect as a client of Socket.IO, and return the answer to its second request."""
    session = json.loads(server.get(f"{HANDSHAKE}polling").body.decode()[1:])["sid"]
    answer = server.get(f"{HANDSHAKE}polling&sid={session}", method="POST")
    return answer.status, answer.body


def test_polling_needs_one_process(start: Starter) -> None:
    pytest.importorskip("flask_socketio")
    for kind in ("waitress", "gthread-1x4"):
        server = start_staying(start, kind)
        assert {second_request(server)[0] for _ in range(20)} == {200}, kind
    server = start_staying(start, "sync").await_ready()
    refused = [body for status, body in map(second_request, [server] * 20) if status == 400]
    assert refused
    assert all(body.startswith(b'"Invalid session ') for body in refused)


@pytest.mark.parametrize(("kind", "status"), [("gthread-2x2", 101), ("waitress", 500)])
def test_websocket_needs_threads_of_gunicorn(
    start: Starter, connect: Clients, kind: str, status: int
) -> None:
    pytest.importorskip("flask_socketio")
    pytest.importorskip("simple_websocket")
    server = start_staying(start, kind).await_ready()
    client = connect(server)
    client.sendall(
        f"GET {HANDSHAKE}websocket HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert client.recv(12) == b"HTTP/1.1 %d" % status
    if status == 101:
        assert server.live_report()["busy"] == 1
