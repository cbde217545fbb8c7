"""A signal to a worker that was just forked is not lost, and nothing inherits that it waits."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from flask_workersize.servers.gunicorn.newborn import defer_signals, hold_signals
from tests.children import Children, status_of
from tests.servers.serving import CONF, Starter, await_that, gunicorn, serve_prod

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, pins a CPU")


@pytest.mark.parametrize("launcher", ["conf", "serve-prod"])
def test_signal_that_reaches_a_worker_before_its_first_instruction_is_not_lost(
    start: Starter, launcher: str
) -> None:
    if launcher == "conf":
        command = gunicorn("-c", CONF, "-w", "3", app="newborn:create_app()")
    else:
        command = serve_prod("--workers", "3", server="gunicorn", app="newborn")
    server = start(command)
    server.wait_for_line("Booting worker", count=6)
    assert server.get("/").json()["pid"] in server.booted_pids[3:]
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


CONF_FILE = """
from flask_workersize.gunicorn_conf import *
from inheriting import post_fork, pre_fork
"""


@pytest.mark.parametrize("launcher", ["conf", "serve-prod"])
def test_nothing_that_a_master_or_worker_starts_inherits_a_blocked_signal(
    start: Starter, launcher: str
) -> None:
    config: dict[str, Any] = {}
    if launcher == "conf":
        (start.folder / "own.py").write_text(CONF_FILE)
        command = gunicorn("-c", "own.py", "-w", "1", app="inheriting:create_app()")
    else:
        hooks = {name: f"inheriting.{name}" for name in ("pre_fork", "post_fork")}
        config = {"WORKERSIZE_GUNICORN_OPTIONS": hooks}
        command = serve_prod("--workers", "1", server="gunicorn", app="inheriting")
    server = start(command, config)
    assert server.get("/start").status == 200
    blocked = dict(line.split() for line in (start.folder / "blocked.txt").read_text().splitlines())
    places = ["pre_fork", "post_fork", "thread", "view"]
    assert set(blocked) == {f"{place}-{kind}" for place in places for kind in ("program", "child")}
    assert set(blocked.values()) == {"0" * 16}
    # The C library blocks all signals for a moment while it starts a thread.
    await_that(lambda: not any(_mask(member.pid) for member in server.members()), "none blocked")
    assert server.stop() == 0


def _mask(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return int(file.read().partition("SigBlk:")[2].split()[0], 16)


def is_blocked() -> bool:
    return signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def fork() -> bool:
    """Fork a process that does nothing, and return whether a signal was blocked in it."""
    pid = os.fork()
    if not pid:
        os._exit(is_blocked())
    return bool(status_of(pid))


def test_signals_wait_until_the_thread_that_holds_them_has_forked(children: Children) -> None:
    def work() -> None:
        hold_signals()
        other = threading.Thread(target=fork)
        other.start()
        other.join()
        assert is_blocked(), "the fork of another thread is no worker's"
        assert fork(), "the worker's"
        assert not is_blocked()
        assert not fork(), "the next one is not"

    assert status_of(children(work)) == 0


def test_fork_that_fails_lets_signals_in(children: Children) -> None:
    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        hold_signals()
        with pytest.raises(BlockingIOError):
            os.fork()
        assert not is_blocked()

    assert status_of(children(work)) == 0


def test_worker_answers_what_came_early_with_its_own_handlers(children: Children) -> None:
    seen: list[int] = []

    def init_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda signum, frame: seen.append(signum))

    def work() -> None:
        worker = SimpleNamespace(init_signals=init_signals)
        hold_signals()
        os.kill(os.getpid(), signal.SIGUSR1)
        defer_signals(worker)
        assert not is_blocked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == []
        worker.init_signals()
        assert sorted(seen) == sorted([signal.SIGUSR1, signal.SIGTERM])

    assert status_of(children(work)) == 0
