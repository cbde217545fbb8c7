"""Sockets that systemd hands over, and what it is told."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_workersize.servers import systemd
from tests.servers.clients import APPS_STOP, PATH, SERVER_ARGS, SLOW, Clients, receive, send
from tests.servers.serving import Server, Starter, await_that, serve_prod

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd runs on Linux only")


@pytest.fixture(params=["tcp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """Listen as systemd does; the test keeps the socket, as systemd does."""
    if request.param == "tcp":
        made = socket.create_server(("127.0.0.1", 0))
    else:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / "inherited.sock"))
        made.listen(64)
    with made as listener:
        yield listener


def url_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"http://127.0.0.1:{name[1]}"


def activate(
    start: Starter, listener: socket.socket, kind: str, app: str = SLOW, **environ: str
) -> Server:
    """Start a server that gets a listening socket as descriptor 3."""
    path = str(start.folder / "handing-over.sock")
    with socket.socket(socket.AF_UNIX) as desk:
        desk.bind(path)
        desk.listen()
        desk.settimeout(30)
        wrapper = [sys.executable, str(APPS_STOP / "activated.py"), path]
        command = [*wrapper, *serve_prod(*SERVER_ARGS[kind], app=app)]
        server = start.launch(command, None, **PATH, **environ)
        taken, _ = desk.accept()
        with taken:
            socket.send_fds(taken, [b"!"], [listener.fileno()])
    Path(path).unlink()
    return server.wait_until_listening()


def test_server_takes_the_socket_and_leaves_it_usable_for_the_next(
    start: Starter, connect: Clients, either: str, listener: socket.socket
) -> None:
    """A connection that is made while the first stops, or after, is served by the second."""
    first = activate(start, listener, either)
    assert first.urls == [url_of(listener)]
    running = connect(first)
    send(running, "/hold?name=running")
    await_that((first.folder / "running.here").exists, "a request running")
    first.signal(signal.SIGTERM)
    (first.folder / "running.go").touch()
    assert receive(running).status == 200
    assert first.wait() == 0
    assert "Traceback" not in first.stderr
    queued = connect(first)
    send(queued, "/")
    second = activate(start, listener, either)
    assert receive(queued).json()["pid"] in {member.pid for member in second.members()}
    assert second.stop() == 0


def test_port_that_is_configured_is_neither_checked_nor_opened(
    start: Starter, connect: Clients, either: str
) -> None:
    """The socket of systemd may be the very port: it is in use, and that is right."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        server = activate(start, listener, either, NOW_LMS_PORT=port, NOW_LMS_HOST="127.0.0.1")
        client = connect(server)
        send(client, "/")
        assert receive(client).status == 200
        assert server.stop() == 0


def test_socket_reaches_a_server_without_preload(start: Starter, connect: Clients) -> None:
    """The fresh process keeps its id, for which the socket is meant, and its descriptors."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = activate(start, listener, "sync", NOW_LMS_PRELOAD="off")
        client = connect(server)
        send(client, "/")
        assert receive(client).status == 200
        assert server.stop() == 0


@pytest.mark.parametrize("count", ["-1", "0", "", "many"])
def test_count_that_is_none_is_no_socket(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    assert systemd.inherited_count() == 0
    assert systemd.take_inherited() == []


def test_children_are_not_told_of_the_sockets(start: Starter, either: str) -> None:
    """A program that the app starts must not take them for its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = activate(start, listener, either, app="environ:create_app")
        assert server.get("/").json() == []


def test_service_manager_is_told_when_ready_and_when_stopping(
    start: Starter, either: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        command = serve_prod(*SERVER_ARGS[either], app=SLOW)
        server = start(command, None, NOTIFY_SOCKET=str(tmp_path / "notify"), **PATH)
        assert "READY=1" in manager.recv(4096).decode().splitlines()
        server.signal(signal.SIGTERM)
        assert "STOPPING=1" in manager.recv(4096).decode().splitlines()
        assert server.wait() == 0


def test_service_manager_that_does_not_listen_is_no_reason_to_fail(
    start: Starter, either: str
) -> None:
    command = serve_prod(*SERVER_ARGS[either], app=SLOW)
    server = start(command, None, NOTIFY_SOCKET="/nonexistent/notify", **PATH)
    assert server.get("/").status == 200
    assert server.stop() == 0


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not here"
)
def test_real_systemd_socket_activate_starts_the_server_with_the_first_connection(
    start: Starter, connect: Clients, either: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}"]
    command += [f"--setenv=PYTHONPATH={PATH['PYTHONPATH']}"]
    server = start.launch([*command, *serve_prod(*SERVER_ARGS[either], app=SLOW)], None, **PATH)
    server.wait_for_line("Listening on")
    client = connect(server, f"http://127.0.0.1:{port}")
    send(client, "/")
    assert receive(client).status == 200
    assert server.stop() == 0
