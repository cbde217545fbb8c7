"""What the monitor does again and again: each task by a clock of its own."""

from __future__ import annotations

import pytest

from flask_workersize import Resources
from flask_workersize.monitor.limits import LimitFollower, limits_of
from flask_workersize.monitor.loop import Look, MonitorLoop, Task
from flask_workersize.monitor.oom import OomDetector
from flask_workersize.monitor.remedy import Remedy
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import Snapshot, State
from tests.monitor.test_limits import Notebook, machine
from tests.plain import load, plan


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Recording(Task):
    """A task that remembers when it was done.

    :param interval: how long it can wait
    """

    def __init__(self, interval: float = 3600.0) -> None:
        self.interval = interval
        self.times: list[float] = []
        self.seen: list[Snapshot] = []
        self.ended: list[Snapshot] = []

    def run(self, now: float, look: Look) -> None:
        self.times.append(now)
        self.seen.append(look())

    def end(self, snapshot: Snapshot) -> None:
        self.ended.append(snapshot)


class Counting(Scoreboard):
    """A table that counts how often it is read."""

    reads = 0

    def read(self, but: int | None = None) -> Snapshot:
        self.reads += 1
        return super().read(but)


@pytest.fixture
def board() -> Counting:
    """Return the table of a deployment that serves."""
    board = Counting(2, 1)
    board.state = State.SERVING
    return board


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pass_time(loop: MonitorLoop, clock: Clock, until: float, late: float = 0.0) -> None:
    """Run the loop, each time when it has waited for as long as it wants to, or a bit longer."""
    while clock.now < until:
        clock.now += loop.run() + late


@pytest.mark.parametrize("hurried", [1 / 2, 1 / 4, 1 / 32, 1 / 64])
def test_hurry_of_one_task_changes_nothing_for_the_others(
    board: Counting, clock: Clock, hurried: float
) -> None:
    """While the guard acts, a changed limit is followed as soon as at rest, and so is a kill."""
    limits, kills = [], []

    def detect() -> tuple[Resources, int]:
        limits.append(clock.now)
        return machine(), 0

    def count() -> int:
        kills.append(clock.now)
        return 0

    settings = load()
    board.followed_memory, board.followed_cpus = limits_of(machine())
    loop = MonitorLoop(
        board,
        [
            LimitFollower(board, settings, plan(), detect, Notebook()),
            OomDetector(board, Remedy(board, plan(), 0.7), count),
            Recording(hurried),
        ],
        clock,
    )
    kills.clear()
    pass_time(loop, clock, 100)
    assert limits == [2.0 * number for number in range(50)]
    assert kills == [0.5 * number for number in range(200)]


def test_tasks_that_are_due_at_once_read_the_table_once(board: Counting, clock: Clock) -> None:
    tasks = [Recording(1.0), Recording(2.0)]
    loop = MonitorLoop(board, tasks, clock)
    pass_time(loop, clock, 4)
    assert [task.times for task in tasks] == [[0, 1, 2, 3], [0, 2]]
    assert board.reads == 4
    assert tasks[1].seen == [tasks[0].seen[0], tasks[0].seen[2]]


def test_table_is_not_read_for_a_task_that_does_not_want_it(board: Counting, clock: Clock) -> None:
    class Blind(Recording):
        def run(self, now: float, look: Look) -> None:
            self.times.append(now)

    tasks = [Blind(0.25), Recording(1.0)]
    pass_time(MonitorLoop(board, tasks, clock), clock, 4)
    assert len(tasks[0].times) == 16
    assert board.reads == 4


def test_pass_before_anything_is_due_costs_nothing(board: Counting, clock: Clock) -> None:
    """The end of the master is looked for more often."""
    clock.now = 8.0
    task = Recording(8.0)
    loop = MonitorLoop(board, [task], clock)
    for waits in (8, 7, 6):
        assert loop.run() == waits
        clock.now += 1
    assert (len(task.seen), board.reads) == (1, 1)


def test_interval_that_a_task_changes_holds_from_its_next_turn(
    board: Counting, clock: Clock
) -> None:
    task = Recording(4.0)
    loop = MonitorLoop(board, [task], clock)
    assert loop.run() == 4
    task.interval = 0.5
    clock.now = 4.0
    assert loop.run() == 0.5


def test_loop_that_comes_late_keeps_the_pace_and_does_not_catch_up(
    board: Counting, clock: Clock
) -> None:
    task = Recording(1.0)
    loop = MonitorLoop(board, [task], clock)
    pass_time(loop, clock, 4, late=0.25)
    assert task.times == [0, 1.25, 2.25, 3.25]
    clock.now = 9.5
    pass_time(loop, clock, 12)
    assert task.times[4:] == [9.5, 10, 11]


def test_tasks_that_began_apart_are_due_together_again(board: Counting, clock: Clock) -> None:
    """Each would read the table for itself."""
    hurried, calm = Recording(0.25), Recording(1.0)
    loop = MonitorLoop(board, [hurried, calm], clock)
    clock.now = 0.125
    pass_time(loop, clock, 3)
    assert calm.times == [0.125, 1, 2]
    assert board.reads == len(hurried.times)


def test_time_that_tasks_take_is_no_time_to_wait(board: Counting, clock: Clock) -> None:
    class Slow(Recording):
        def run(self, now: float, look: Look) -> None:
            clock.now += 3

    assert MonitorLoop(board, [Slow(4.0)], clock).run() == 1
    assert MonitorLoop(board, [Slow(2.0)], clock).run() == 0


def test_loop_without_tasks_waits_for_ever(board: Counting, clock: Clock) -> None:
    assert MonitorLoop(board, [], clock).run() == float("inf")
    assert board.reads == 0


def test_each_task_ends_once_with_what_is_left(board: Counting) -> None:
    tasks = [Recording(), Recording()]
    board.allocate(1)
    MonitorLoop(board, tasks).end()
    for task in tasks:
        assert [len(snapshot.workers) for snapshot in task.ended] == [1]
        assert task.seen == []
