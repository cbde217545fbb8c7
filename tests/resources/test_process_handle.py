"""Signals reach the process that is meant, and never another one of that id."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_workersize.resources.process_handle import ProcessHandle, end_all
from flask_workersize.resources.processes import start_time
from tests.children import Children, Pipe, status_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def peer_of(pid: int) -> ProcessHandle:
    return ProcessHandle(pid, start_time(pid))


@pytest.fixture(params=["pidfd", "plain"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with a pidfd and as on a system that has none."""
    if request.param == "plain":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("this system has no pidfd")


def obeying(children: Children) -> int:
    """Return a child that ends at a SIGTERM."""

    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        pipe.tell("ready")
        while True:
            signal.pause()

    with Pipe() as pipe:
        pid = children(work)
        pipe.hear()
    return pid


def stubborn(children: Children) -> int:
    """Return a child that does not care."""

    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pipe.tell("ready")
        while True:
            signal.pause()

    with Pipe() as pipe:
        pid = children(work)
        pipe.hear()
    return pid


def test_process_is_alive_until_it_has_ended(children: Children) -> None:
    pid = obeying(children)
    peer = peer_of(pid)
    assert peer.is_alive()
    os.kill(pid, signal.SIGKILL)
    status_of(pid)
    assert not peer.is_alive()


def test_signal_is_sent_and_that_is_said(children: Children) -> None:
    pid = obeying(children)
    assert peer_of(pid).signal(signal.SIGTERM)
    assert status_of(pid) == -signal.SIGTERM


@pytest.mark.parametrize("later", [-1, 1])
def test_other_process_that_has_the_id_by_now_gets_no_signal(
    children: Children, later: int
) -> None:
    pid = obeying(children)
    peer = ProcessHandle(pid, start_time(pid) + later)
    assert not peer.is_alive()
    assert not peer.signal(signal.SIGKILL)
    assert peer_of(pid).is_alive()


def test_process_that_is_gone_gets_no_signal(children: Children) -> None:
    pid = obeying(children)
    peer = peer_of(pid)
    os.kill(pid, signal.SIGKILL)
    status_of(pid)
    assert not peer.signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "peer", [ProcessHandle(0, 0), ProcessHandle(0, 1), ProcessHandle(os.getpid(), 0)]
)
def test_process_that_is_not_known_gets_no_signal(peer: ProcessHandle) -> None:
    """A row of the scoreboard is blank right after the fork; an id of 0 is a whole group."""
    assert not peer.is_alive()
    assert not peer.signal(signal.SIGTERM)


def test_number_that_is_no_signal_is_not_sent(children: Children) -> None:
    pid = obeying(children)
    assert not peer_of(pid).signal(5000)
    assert peer_of(pid).is_alive()


def ends(pids: list[int], patience_seconds: float) -> list[int]:
    """End the processes, and return how each ended; their parent waits for them meanwhile."""
    peers = [peer_of(pid) for pid in pids]
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end_all, peers, patience_seconds)
        statuses = [status_of(pid) for pid in pids]
        ending.result()
    return statuses


def test_those_who_obey_are_asked_and_the_others_killed(children: Children) -> None:
    pids = [obeying(children), stubborn(children), obeying(children)]
    assert ends(pids, 0.2) == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM]


def test_nobody_is_killed_who_ends_in_time(children: Children) -> None:
    """What it does meanwhile, such as the answer it owes, is done."""

    def work() -> None:
        asked = threading.Event()
        signal.signal(signal.SIGTERM, lambda signum, frame: asked.set())
        pipe.tell("ready")
        while not asked.wait(0.01):
            pass

    with Pipe() as pipe:
        pid = children(work)
        pipe.hear()
    assert ends([pid], 30) == [0]


@pytest.mark.parametrize("make", [obeying, stubborn])
def test_those_who_are_somebody_else_by_now_are_left_alone(
    children: Children, make: Callable[[Children], int]
) -> None:
    pid = make(children)
    end_all([ProcessHandle(pid, start_time(pid) - 1), ProcessHandle(0, 0)], 0)
    assert peer_of(pid).is_alive()


def test_nobody_to_end_takes_no_time() -> None:
    end_all([], 3600)
