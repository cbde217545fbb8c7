"""Sockets that systemd hands over, and what it is told."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.servers import systemd
from tests.servers.clients import APPS_STOP, PATH, SERVER_ARGS, SLOW, Clients, receive, send
from tests.servers.serving import (
    CONF,
    DEADLINE_SECONDS,
    Server,
    Starter,
    await_that,
    gunicorn,
    serve_prod,
)

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


class Manager:
    """What systemd is to a service that notifies it.

    :param path: where it listens
    """

    def __init__(self, path: Path) -> None:
        self.environ = {"NOTIFY_SOCKET": str(path)}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(DEADLINE_SECONDS)

    def hear(self, state: str) -> list[str]:
        """Wait for a message with this state, and return its lines."""
        while state not in (lines := self._socket.recv(4096).decode().splitlines()):
            pass
        return lines

    def hears(self, seconds: float) -> bool:
        """Return whether anything is sent so soon."""
        self._socket.settimeout(seconds)
        try:
            return bool(self._socket.recv(4096))
        except TimeoutError:
            return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(tmp_path / "notify")) as manager:
        yield manager


def test_watchdog_is_fed_while_the_server_serves_reloads_and_stops(
    start: Starter, connect: Clients, either: str, manager: Manager
) -> None:
    """A reload and a stop keep the loop for as long as a request takes."""
    command = serve_prod(*SERVER_ARGS[either], app=SLOW)
    server = start(command, None, WATCHDOG_USEC="300000", **manager.environ, **PATH)
    manager.hear("READY=1")
    for _ in range(3):
        manager.hear("WATCHDOG=1")
    if either != "waitress":
        reloaded = connect(server)
        send(reloaded, "/hold?name=reloaded")
        await_that((server.folder / "reloaded.here").exists, "a request running")
        server.signal(signal.SIGHUP)
        time_sent = manager.hear("RELOADING=1")[1]
        assert re.fullmatch(r"MONOTONIC_USEC=\d+", time_sent)
        assert abs(int(time_sent.partition("=")[2]) / 1e6 - time.monotonic()) < DEADLINE_SECONDS
        for _ in range(3):
            assert manager.hear("WATCHDOG=1") == ["WATCHDOG=1"]
        (server.folder / "reloaded.go").touch()
        assert receive(reloaded).status == 200
        manager.hear("READY=1")
    held = connect(server)
    send(held, "/hold?name=held")
    await_that((server.folder / "held.here").exists, "a request running")
    server.signal(signal.SIGTERM)
    manager.hear("STOPPING=1")
    for _ in range(3):
        manager.hear("WATCHDOG=1")
    (server.folder / "held.go").touch()
    assert receive(held).status == 200
    assert server.wait() == 0


def test_watchdog_of_a_server_that_hangs_is_not_fed(
    start: Starter, connect: Clients, manager: Manager
) -> None:
    """Every slot has a request that takes longer than the timeout; the loop turns all the same."""
    command = serve_prod(*SERVER_ARGS["gthread-1x4"], app=SLOW)
    environ = {"NOW_LMS_TIMEOUT": "1", "WATCHDOG_USEC": "300000"}
    server = start(command, None, **environ, **manager.environ, **PATH)
    manager.hear("WATCHDOG=1")
    for number in range(4):
        send(connect(server), f"/hold?name=h{number}")
    await_that(lambda: not manager.hears(1.0), "no sign of life")


def test_gunicorn_that_is_started_directly_warns_that_it_feeds_no_watchdog(start: Starter) -> None:
    command = gunicorn("-c", CONF, "-w", "1", app=f"{SLOW}()")
    server = start(command, None, WATCHDOG_USEC="30000000", **PATH)
    assert server.stderr.count("WatchdogSec=") == 1


@pytest.mark.parametrize(
    ("period", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("500000", "mine", 0.5),
        ("30000000", "1", None),
        ("30000000", "x", None),
        ("0", None, None),
        ("-1", None, None),
        ("", None, None),
        ("infinity", None, None),
    ],
)
def test_watchdog_is_that_of_this_process(
    monkeypatch: pytest.MonkeyPatch, period: str, pid: str | None, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", period)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "mine" else pid)
    assert systemd.watchdog_seconds() == seconds
    systemd.Watchdog(Scoreboard(1, 1), 0)
    assert {"WATCHDOG_USEC", "WATCHDOG_PID"}.isdisjoint(os.environ)


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
