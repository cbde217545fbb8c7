"""The graceful timeout bounds the end of every process, whatever threads of the app run on."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gunicorn.arbiter import Arbiter

from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.servers.ending import process_end
from flask_workersize.servers.gunicorn.arbiter import GracefulArbiter
from flask_workersize.servers.waitress.run import OUT_OF_MEMORY_STATUS
from tests.children import is_gone
from tests.servers.clients import APPS_STOP, PATH, Clients, is_turned_away, send
from tests.servers.serving import (
    CONF,
    Server,
    Starter,
    await_that,
    flask,
    gunicorn,
    script,
    serve_prod,
)

LINGERING = "lingering:app"
SECONDS = 60
"""For how long what lingers goes on."""

SOON_SECONDS = 25
"""Far less than the app's threads run, far more than the end may take on a busy machine."""

OVER = r"graceful timeout \(1 s\) is over: ending process (\d+) "


def begin(start: Starter, lingering: str, *args: str, **environ: str) -> Server:
    """Start the app with a graceful timeout of a second."""
    environ = {**PATH, "LINGERING": lingering, "NOW_LMS_GRACEFUL_TIMEOUT": "1", **environ}
    return start(serve_prod(*args, app=LINGERING), **environ)


def events(server: Server) -> Counter[tuple[str, int]]:
    """Return what the app's processes noted, and how often."""
    lines = (server.folder / "events.txt").read_text().splitlines()
    return Counter((what, int(pid)) for what, pid in map(str.split, lines))


def stop_soon(server: Server) -> int:
    """Stop a server, and return its status."""
    server.signal(signal.SIGTERM)
    return server.process.wait(SOON_SECONDS)


@pytest.mark.parametrize(
    ("lingering", "args"),
    [("timer", []), ("pool", ["--wsgi-server", "gunicorn", "--workers", "2"])],
)
def test_thread_of_the_app_does_not_hold_a_stop(
    start: Starter, lingering: str, args: list[str]
) -> None:
    """Neither the launcher nor a worker, and each runs its exit handlers, once.

    No thread of ours waits for that where processes are forked.
    """
    server = begin(start, lingering, *args)
    server.wait_for_line("Booting worker", len(args[3:]) * 2)
    assert server.get("/").status == 200
    assert stop_soon(server) == 0
    processes = {server.pid, *server.booted_pids}
    assert events(server) == Counter(("exit", pid) for pid in processes)
    ended = re.findall(OVER + r"with thread 'nightly\w*' still running\.", server.stderr)
    assert sorted(map(int, ended)) == sorted(processes)
    assert "workersize-" not in (server.folder / "forks.txt").read_text()
    assert "SIGKILL" not in server.stderr


def test_thread_does_not_hold_a_launcher_that_is_gunicorns_own(start: Starter) -> None:
    command = gunicorn("-c", CONF, "-w", "1", app=LINGERING)
    environ = {**PATH, "LINGERING": "thread", "NOW_LMS_GRACEFUL_TIMEOUT": "1"}
    server = start(command, None, **environ)
    assert server.get("/").status == 200
    assert stop_soon(server) == 0
    assert f"ending process {server.pid} with thread" in server.stderr


def test_second_ctrl_c_waits_for_no_thread(start: Starter, name: str) -> None:
    server = begin(start, "pool", "--wsgi-server", name, NOW_LMS_GRACEFUL_TIMEOUT="60")
    assert server.get("/").status == 200
    server.signal_group(signal.SIGINT)
    await_that(lambda: is_turned_away(server.urls[0], server.folder), "the stop has begun")
    server.signal_group(signal.SIGINT)
    assert server.process.wait(SOON_SECONDS) == 0
    assert "is over" not in server.stderr


def test_what_ends_by_itself_is_waited_for_and_not_mentioned(start: Starter) -> None:
    server = begin(start, "ending", "--wsgi-server", "gunicorn", "--workers", "1")
    assert server.get("/").status == 200
    assert stop_soon(server) == 0
    assert {("last", pid) for pid in (server.pid, *server.booted_pids)} <= set(events(server))
    assert "is over" not in server.stderr


def test_code_after_serve_goes_on_and_its_status_counts(start: Starter) -> None:
    """Neither it nor what it has started is cut short; what the app left running is at the end.

    A handler that hangs changes nothing: the others run.
    """
    environ = {**PATH, "LINGERING": "thread", "NOW_LMS_GRACEFUL_TIMEOUT": "1"}
    server = start(script(APPS_STOP / "lingering.py"), **environ, NOW_LMS_WORKERS="1")
    assert server.get("/").status == 200
    assert stop_soon(server) == 7
    assert events(server) == Counter(
        [(what, server.pid) for what in ("returned", "done", "later", "exit")]
        + [("exit", pid) for pid in server.booted_pids]
    )
    ended = re.findall(OVER + re.escape(r"with thread 'night\x1bly' still"), server.stderr)
    assert {int(pid) for pid in ended} == {server.pid, *server.booted_pids}
    assert re.findall(OVER + "while its exit handlers still run", server.stderr) == [
        str(server.pid)
    ]
    assert "with thread 'MainThread'" not in server.stderr
    assert "Traceback" not in server.stderr


def test_server_goes_on_without_threads_of_ours(start: Starter) -> None:
    server = begin(start, "threadless", "--wsgi-server", "gunicorn", "--workers", "1")
    assert server.get("/").status == 200
    assert stop_soon(server) == 0


def test_status_of_a_server_that_is_cut_amid_its_stop(start: Starter) -> None:
    server = start(serve_prod(app="stuck:app"), **PATH, NOW_LMS_GRACEFUL_TIMEOUT="1")
    assert server.get("/exhaust").status == 200
    assert stop_soon(server) == OUT_OF_MEMORY_STATUS
    assert re.search(OVER + "with thread 'MainThread'", server.stderr)


def test_status_of_gunicorn_is_known_when_its_stop_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(process_end, "status", 0)
    monkeypatch.setattr(Arbiter, "halt", lambda *_: seen.append(process_end.status))
    arbiter = GracefulArbiter.__new__(GracefulArbiter)
    arbiter._launcher = os.getpid()
    arbiter.halt("no worker boots", 3)
    assert seen == [3]


def test_no_more_workers_are_started_than_are_wanted_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one's first request may show that the others do not fit."""
    board = Scoreboard(5, 1)
    arbiter = GracefulArbiter.__new__(GracefulArbiter)
    arbiter._hooks = cast(Any, SimpleNamespace(board=board))
    vars(arbiter)["_num_workers"] = board.wanted
    monkeypatch.setattr(GracefulArbiter, "WORKERS", {})

    def spawn(self: GracefulArbiter) -> None:
        self.WORKERS[len(self.WORKERS)] = None
        if len(self.WORKERS) == 2:
            board.removed += 2

    monkeypatch.setattr(GracefulArbiter, "spawn_worker", spawn)
    arbiter.spawn_workers()
    assert len(arbiter.WORKERS) == board.wanted == 3


def test_workers_end_in_time_amid_a_request_and_after_the_most_requests(
    start: Starter, connect: Clients
) -> None:
    """Neither has crashed, and a successor serves."""
    options = {"WORKERSIZE_GUNICORN_OPTIONS": {"max_requests": 1}}
    command = serve_prod("--wsgi-server", "gunicorn", "--workers", "1", app=LINGERING)
    environ = {**PATH, "LINGERING": "thread", "NOW_LMS_GRACEFUL_TIMEOUT": "1"}
    server = start(command, options, **environ)
    send(connect(server), f"/sleep?name=long&seconds={SECONDS}")
    await_that((server.folder / "long.here").exists, "the request")
    (worker,) = server.booted_pids
    os.kill(worker, signal.SIGTERM)
    await_that(lambda: is_gone(worker), "the end of the worker", SOON_SECONDS)
    server.wait_for_line("Booting worker", 2)
    successor = server.get("/").json()["pid"]
    await_that(lambda: is_gone(successor), "the end of its successor", SOON_SECONDS)
    assert server.booted_pids[:2] == [worker, successor]
    stop_soon(server)
    assert {("exit", worker): 1, ("exit", successor): 1}.items() <= events(server).items()
    ended = dict(re.findall(OVER + r"with (.+) still running", server.stderr))
    assert ended[str(worker)] == "1 request"
    assert ended[str(successor)].startswith("thread 'night")
    assert "crashed" not in server.stderr


PROGRAM = """\
import os, time, threading
from flask import Flask
from flask.cli import FlaskGroup
from flask_workersize import WorkerSizing
def create_app():
    app = Flask("program")
    WorkerSizing(app)
    threading.Thread(target=time.sleep, args=(60,)).start()
    return app
if __name__ == "__main__":
    FlaskGroup(create_app=create_app)()
"""


def test_commands_end_whatever_threads_of_the_app_run_on(start: Starter, tmp_path: Path) -> None:
    """Also if they fail, and if a program makes the app itself."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        commands = [
            (serve_prod("--no-such", app=LINGERING), 2),
            (flask("workersize", "doctor", app=LINGERING), 0),
            (serve_prod("--port", port, app=LINGERING), 1),
            (script(tmp_path / "program.py", "workersize", "plan"), 0),
        ]
        environ = {**PATH, "LINGERING": "thread"}
        until = time.monotonic() + 2 * SOON_SECONDS
        servers = [start.launch(command, **environ) for command, _ in commands]
        for server, (command, status) in zip(servers, commands, strict=True):
            left = until - time.monotonic()
            assert server.process.wait(left) == status, (command, server.stderr)
            assert "is over" not in server.stderr
            assert "Traceback" not in server.stderr
        ended = {pid for what, pid in events(servers[0]) if what == "exit"}
        assert {server.pid for server in servers[:-1]} <= ended
