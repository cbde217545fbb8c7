"""What the monitor sees: saturation, and the memory of one worker after the other."""

from __future__ import annotations

import os
import signal
import time

import pytest

from flask_workersize.monitor import loop as watch_module
from flask_workersize.monitor.loop import MonitorLoop
from flask_workersize.runtime.layout import Slot
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import Snapshot, State
from tests.children import Children, status_of
from tests.runtime.workers import await_ready, forks, serving_worker


@pytest.fixture
def board() -> Scoreboard:
    """Return the table of a deployment that serves."""
    board = Scoreboard(2, 1)
    board.state = State.SERVING
    return board


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it look each time that it is asked to."""
    monkeypatch.setattr(watch_module, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(watch_module, "SAMPLE_SECONDS", 0.0)


def test_second_look_within_a_turn_costs_nothing(
    board: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called after each request of a probe, however many there are."""
    monkeypatch.setattr(watch_module, "TURN_SECONDS", 3600.0)
    loop = MonitorLoop(board)
    loop.run()
    row = board.allocate(1)
    assert row is not None
    row.enter()
    row.cells[row.slots[0] + Slot.BEGUN] = time.monotonic_ns()
    loop.run()
    assert board.read().workers[0].memory is None


@forks
@pytest.mark.usefixtures("restless")
def test_memory_is_read_of_one_worker_at_a_time_the_longest_unread_first(
    board: Scoreboard, children: Children
) -> None:
    for age in (1, 2, 3):
        children(serving_worker(board, age))
    await_ready(board, 3)
    loop = MonitorLoop(board)
    order: list[int] = []
    for _ in range(6):
        loop.run()
        seen = {row.number: row.memory for row in board.read().workers if row.memory}
        order.append(min(seen, key=lambda number: seen[number].age_seconds))
    assert len(set(order[:3])) == 3
    assert order[3:] == order[:3]
    assert all(memory.rss_bytes > 0 for memory in seen.values())


@pytest.mark.usefixtures("restless")
def test_memory_of_a_worker_that_has_not_said_who_it_is_is_not_read(board: Scoreboard) -> None:
    """Right after the fork; nor does it keep the others from their turn."""
    board.allocate(1)
    known = board.allocate(2)
    assert known is not None
    known.enter()
    MonitorLoop(board).run()
    blank, seen = board.read().workers
    assert blank.memory is None
    assert seen.memory is not None


@forks
@pytest.mark.usefixtures("restless")
def test_memory_of_a_worker_that_is_gone_is_not_noted(
    board: Scoreboard, children: Children
) -> None:
    pid = children(serving_worker(board, 1))
    await_ready(board, 1)
    os.kill(pid, signal.SIGKILL)
    status_of(pid)
    MonitorLoop(board).run()
    assert board.read().workers[0].memory is None


# Its duties


class Recording:
    """A duty that remembers when it was done.

    :param turn_seconds: how long it can wait
    """

    def __init__(self, interval: float = 3600.0) -> None:
        self.interval = interval
        self.seen: list[Snapshot] = []
        self.ended: list[Snapshot] = []

    def run(self, now: float, snapshot: Snapshot) -> None:
        self.seen.append(snapshot)

    def end(self, snapshot: Snapshot) -> None:
        self.ended.append(snapshot)


@pytest.mark.usefixtures("restless")
def test_each_duty_is_done_at_each_look_with_what_is_seen_then(board: Scoreboard) -> None:
    tasks = [Recording(0.0), Recording(0.0)]
    loop = MonitorLoop(board, tasks)
    loop.run()
    board.allocate(1)
    loop.run()
    for task in tasks:
        assert [len(snapshot.workers) for snapshot in task.seen] == [0, 1]
        assert task.ended == []


@pytest.mark.usefixtures("restless")
def test_duty_that_can_wait_is_not_done_as_often_as_one_that_cannot(board: Scoreboard) -> None:
    often, seldom = Recording(0.0), Recording(3600.0)
    loop = MonitorLoop(board, [seldom, often])
    for _ in range(5):
        loop.run()
    assert (len(often.seen), len(seldom.seen)) == (5, 1)


def test_duty_is_not_done_before_it_is_time(board: Scoreboard) -> None:
    """Requests of probes come in between, as many as they like."""
    task = Recording()
    loop = MonitorLoop(board, [task])
    for _ in range(5):
        loop.run()
    assert len(task.seen) == 1


def test_turn_is_as_short_as_the_duty_that_is_due_first_wants(board: Scoreboard) -> None:
    assert MonitorLoop(board).interval == watch_module.TURN_SECONDS
    assert MonitorLoop(board, [Recording()]).interval == watch_module.TURN_SECONDS
    assert MonitorLoop(board, [Recording(0.01), Recording()]).interval == 0.01


def test_each_duty_ends_once_with_what_is_left(board: Scoreboard) -> None:
    tasks = [Recording(), Recording()]
    board.allocate(1)
    MonitorLoop(board, tasks).end()
    for task in tasks:
        assert [len(snapshot.workers) for snapshot in task.ended] == [1]
        assert task.seen == []
