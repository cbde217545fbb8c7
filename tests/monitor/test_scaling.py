"""How what the guard wants gets done: by the scoreboard, or by signals, one at a time."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flask_workersize.monitor import scaling as hands_module
from flask_workersize.monitor.scaling import (
    OOM_SCORE_MORE,
    REFUSED_WARNING,
    ArbiterScaler,
    Scaler,
    SignalScaler,
    raise_oom_score,
)
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import State, WorkerStats
from flask_workersize.runtime.worker_record import WorkerRecord
from tests.children import Children, Pipe, is_gone, kill, status_of
from tests.runtime.workers import await_ready, forks, serving_worker

pytestmark = forks

RECORDED = {signal.SIGTERM, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD, signal.SIGHUP}


def target(scaler: Scaler, who: str, count: int) -> None:
    """Have guard or limits want so many workers more, or fewer."""
    board = scaler._board
    if who == "limits":
        board.for_limits = count
    else:
        board.stand_ins, board.removed = max(count, 0), max(-count, 0)
    scaler.scale()


class Master:
    """A process that says which signals have reached it, when it is asked.

    :param children: forks it
    """

    def __init__(self, children: Children) -> None:
        self._asked, self._answers = Pipe(), Pipe()

        def work() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, RECORDED)
            self._answers.tell("ready")
            while self._asked.hear() == "what?":
                reached = sorted(signal.sigpending() & RECORDED)
                self._answers.tell(" ".join(str(int(signal.sigwait({one}))) for one in reached))

        self.pid = children(work)
        assert self._answers.hear() == "ready"

    def heard(self) -> list[signal.Signals]:
        """Return the signals since it was last asked; of the same one no more than one."""
        self._asked.tell("what?")
        return [signal.Signals(int(number)) for number in self._answers.hear().split()]

    def close(self) -> None:
        for pipe in (self._asked, self._answers):
            pipe.__exit__()


@pytest.fixture
def master(children: Children) -> Iterator[Master]:
    master = Master(children)
    yield master
    master.close()


class Site:
    """A deployment of so many workers, as its master and its workers write it down."""

    def __init__(self, planned: int) -> None:
        self.board = Scoreboard(planned, 1)
        self.board.state = State.SERVING
        self._next_age = 1
        self.start(planned)

    def fork(self) -> WorkerRecord:
        """Have one more worker, which is not ready yet."""
        row = self.board.allocate(self._next_age)
        assert row is not None
        self._next_age += 1
        return row

    def start(self, count: int = 1) -> None:
        """Have more workers that are ready."""
        for _ in range(count):
            self.fork().set_ready()

    def end(self, count: int = 1) -> None:
        """Have the oldest ones gone."""
        for age in self.ages()[:count]:
            self.board.release(age)

    def ages(self) -> list[int]:
        return sorted(row.age for row in self.board.read().workers)


def record_of(board: Scoreboard) -> WorkerStats:
    (row,) = board.read().workers
    return row


# A master of ours


def running(board: Scoreboard, *seconds: float) -> list[WorkerStats]:
    """Return the workers of a table, each with a request that runs for so long; 0 for none."""
    rows = board.read().workers
    return [
        row._replace(running_seconds=(since,) if since else ())
        for row, since in zip(rows, seconds, strict=True)
    ]


def told(board: Scoreboard) -> list[int]:
    return [row.age for row in board.read().workers if row.is_leaving]


def test_workers_that_run_nothing_are_removed_first_then_those_that_began_last(
    master: Master,
) -> None:
    """What runs for long may hold the memory, and would be waited for."""
    board = Site(4).board
    chosen = ArbiterScaler(board, master.pid).choose(running(board, 2, 0, 0.1, 3), 2)
    assert [row.age for row in chosen] == [2, 3]
    assert told(board) == [2, 3]


def test_one_worker_always_stays(master: Master) -> None:
    board = Site(2).board
    assert len(ArbiterScaler(board, master.pid).choose(running(board, 0, 0), 5)) == 1


def test_master_chooses_while_a_worker_starts_or_may_not_be_chosen_at_all(master: Master) -> None:
    site = Site(2)
    assert SignalScaler(site.board, master.pid).choose(running(site.board, 0, 0), 1) == ()
    site.fork()
    site.board.planned = 3
    assert ArbiterScaler(site.board, master.pid).choose(running(site.board, 0, 0, 0), 1) == ()
    assert told(site.board) == []


def test_worker_that_was_chosen_ends(children: Children, master: Master) -> None:
    board = Scoreboard(1, 1)
    pid = children(serving_worker(board, 1))
    await_ready(board, 1)
    ArbiterScaler(board, master.pid).release([record_of(board)])
    assert status_of(pid) == -signal.SIGTERM


def test_what_several_want_is_added_up_and_the_master_woken_for_each_change(
    master: Master,
) -> None:
    board = Scoreboard(4, 1)
    scaler = ArbiterScaler(board, master.pid)
    steps = [("guard", -1, 3), ("limits", 3, 6), ("guard", -2, 5), ("limits", 0, 2)]
    for who, count, wanted in steps:
        target(scaler, who, count)
        assert board.wanted == wanted
        assert master.heard() == [signal.SIGCHLD]


def test_master_is_not_woken_for_nothing(master: Master) -> None:
    scaler = ArbiterScaler(Scoreboard(4, 1), master.pid)
    target(scaler, "guard", 0)
    target(scaler, "guard", 1)
    target(scaler, "guard", 1)
    assert master.heard() == [signal.SIGCHLD]


def test_there_is_always_one_wanted(master: Master) -> None:
    board = Scoreboard(2, 1)
    target(ArbiterScaler(board, master.pid), "guard", -5)
    assert board.wanted == 1


def test_monitor_that_is_started_again_goes_on_where_the_one_before_left_off(
    master: Master,
) -> None:
    board = Scoreboard(4, 1)
    target(ArbiterScaler(board, master.pid), "limits", 2)
    target(ArbiterScaler(board, master.pid), "guard", -1)
    assert board.wanted == 5
    scaler = ArbiterScaler(board, master.pid)
    assert master.heard() == [signal.SIGCHLD]
    target(scaler, "guard", 0)
    assert board.wanted == 6
    assert master.heard() == [signal.SIGCHLD]


def test_recycled_worker_is_told_in_the_table_and_by_a_signal(
    children: Children, master: Master
) -> None:
    board = Scoreboard(1, 1)
    pid = children(serving_worker(board, 1))
    await_ready(board, 1)
    assert ArbiterScaler(board, master.pid).recycle(record_of(board))
    assert status_of(pid) == -signal.SIGTERM
    assert record_of(board).is_leaving
    assert board.read().stored["recycled"] == 1
    assert master.heard() == []


def test_worker_that_has_gone_cannot_be_recycled(children: Children, master: Master) -> None:
    board = Scoreboard(1, 1)
    pid = children(serving_worker(board, 1))
    await_ready(board, 1)
    row = record_of(board)
    kill(pid)
    assert not ArbiterScaler(board, master.pid).recycle(row)


def test_process_that_has_the_id_of_a_worker_by_now_is_left_alone(
    children: Children, master: Master
) -> None:
    board = Scoreboard(1, 1)
    pid = children(serving_worker(board, 1))
    await_ready(board, 1)
    row = record_of(board)
    other = row._replace(start_time=row.start_time - 1)
    assert not ArbiterScaler(board, master.pid).recycle(other)
    assert not is_gone(pid)


@pytest.mark.parametrize("kind", [ArbiterScaler, SignalScaler, Scaler])
def test_end_of_the_server_is_the_masters(kind: type[ArbiterScaler], master: Master) -> None:
    kind(Scoreboard(1, 1), master.pid).end_server()
    assert master.heard() == [signal.SIGTERM]


def test_board_is_all_that_a_master_of_ours_needs(master: Master) -> None:
    """It looks once a second, and when it is woken."""
    site = Site(2)
    scaler = ArbiterScaler(site.board, master.pid)
    site.board.stand_ins = 2
    scaler.reconcile(site.board.read)
    assert master.heard() == []


# gunicorn's own master


class Signalled(Site):
    """A deployment whose master obeys signals.

    :param planned: its workers
    :param master: its master, which obeys as the test has it
    """

    def __init__(self, planned: int, master: Master) -> None:
        super().__init__(planned)
        self.scaler = SignalScaler(self.board, master.pid)
        self._master = master

    def press(self, times: int = 1) -> list[signal.Signals]:
        """Press on, and return what reached the master, each time: several would count as one."""
        heard = []
        for _ in range(times):
            self.scaler.reconcile(self.board.read)
            heard += self._master.heard()
        return heard


MORE, FEWER = [signal.SIGTTIN], [signal.SIGTTOU]


@pytest.fixture(autouse=True)
def settles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker more than wanted count as too many at once, where a test does not say else."""
    monkeypatch.setattr(hands_module, "SETTLED_SECONDS", 0.0)


def test_workers_that_leave_after_a_reload_cost_no_other_one(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old ones go one by one: until nothing changes any more, none is one too many."""
    monkeypatch.setattr(hands_module, "SETTLED_SECONDS", 3600.0)
    site = Signalled(3, master)
    target(site.scaler, "limits", -1)
    assert site.press() == FEWER
    site.end()
    site.start(3)
    for _ in range(2):
        assert site.press(3) == []
        site.end()


def test_signals_are_sent_one_at_a_time_each_after_the_last_was_obeyed(master: Master) -> None:
    """Three at once would count as one."""
    site = Signalled(2, master)
    target(site.scaler, "guard", 3)
    assert site.press(5) == MORE
    for _ in range(2):
        row = site.fork()
        assert site.press(5) == []
        row.set_ready()
        assert site.press(5) == MORE
    site.start()
    assert site.press(5) == []


def test_fewer_are_asked_for_one_at_a_time(master: Master) -> None:
    site = Signalled(4, master)
    target(site.scaler, "limits", -2)
    for _ in range(2):
        assert site.press(5) == FEWER
        site.end()
    assert site.press(5) == []


def test_more_is_asked_for_again_after_a_while(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Signalled(2, master)
    target(site.scaler, "guard", 1)
    assert site.press(5) == MORE
    monkeypatch.setattr(hands_module, "CONFIRM_SECONDS", 0.0)
    assert site.press() == MORE


def test_worker_that_takes_long_to_end_costs_no_other_one(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finishes its request first; nobody tells the table that it is on its way."""
    monkeypatch.setattr(hands_module, "CONFIRM_SECONDS", 0.0)
    site = Signalled(3, master)
    target(site.scaler, "guard", -1)
    assert site.press(5) == FEWER
    monkeypatch.setattr(hands_module, "LEAVE_SECONDS", 0.0)
    assert site.press() == FEWER


@pytest.mark.parametrize("count", [-1, 1])
def test_reload_that_has_set_the_number_back_is_noticed(master: Master, count: int) -> None:
    site = Signalled(3, master)
    target(site.scaler, "limits", count)
    expected = MORE if count > 0 else FEWER
    assert site.press() == expected
    site.start() if count > 0 else site.end()
    assert site.press() == []
    site.end(3 + count)
    site.start(3)
    assert site.press(5) == expected


def test_reload_before_the_last_signal_was_obeyed_is_noticed(master: Master) -> None:
    """There are as many as before then, but they are others."""
    site = Signalled(3, master)
    target(site.scaler, "limits", -1)
    assert site.press() == FEWER
    site.end(3)
    site.start(3)
    assert site.press(5) == FEWER


def test_number_goes_back_to_the_planned_one_when_nothing_else_is_wanted(master: Master) -> None:
    site = Signalled(2, master)
    target(site.scaler, "guard", 1)
    assert site.press() == MORE
    site.start()
    target(site.scaler, "guard", 0)
    assert site.press(5) == FEWER
    site.end()
    assert site.press(5) == []


@pytest.mark.parametrize("there", [1, 3])
def test_number_that_an_operator_has_set_is_left_alone_while_nothing_else_is_wanted(
    master: Master, there: int
) -> None:
    site = Signalled(2, master)
    site.start() if there > 2 else site.end()
    assert site.press(5) == []


def test_nothing_is_sent_while_a_worker_starts_or_is_recycled(master: Master) -> None:
    site = Signalled(3, master)
    target(site.scaler, "guard", 1)
    starting = site.fork()
    assert site.press() == []
    starting.set_ready()
    target(site.scaler, "guard", 3)
    site.board.tell_to_leave(0)
    assert site.press() == []
    site.end()
    assert site.press() == MORE


@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPING, State.STOPPED])
def test_nothing_is_sent_to_a_master_that_drains_or_stops(master: Master, state: State) -> None:
    """One worker more would only delay it."""
    site = Signalled(2, master)
    target(site.scaler, "guard", 1)
    site.board.state = state
    assert site.press() == []


def test_master_is_not_woken_where_it_knows_no_table(master: Master) -> None:
    site = Signalled(2, master)
    target(site.scaler, "guard", 1)
    assert master.heard() == []


def test_master_that_cannot_be_signalled_is_told_of_once(
    master: Master, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands_module, "CONFIRM_SECONDS", 0.0)
    site = Signalled(2, master)
    kill(master.pid)
    target(site.scaler, "guard", 1)
    for _ in range(3):
        site.scaler.reconcile(site.board.read)
    assert caplog.messages == [REFUSED_WARNING]


# No workers to let go


def test_server_of_one_process_has_nobody_to_let_go(master: Master) -> None:
    site = Site(1)
    scaler = Scaler(site.board, master.pid)
    target(scaler, "guard", -1)
    scaler.reconcile(site.board.read)
    assert not scaler.recycle(record_of(site.board))
    assert site.board.read().stored["recycled"] == 0
    assert not record_of(site.board).is_leaving
    assert master.heard() == []


# Who is killed first


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
SCORE = Path("/proc/self/oom_score_adj")


def score_after(children: Children, before: Callable[[int], int]) -> tuple[int, int]:
    """Return the score that a process had, and has after it was raised."""

    def work() -> None:
        first = before(int(SCORE.read_text()))
        SCORE.write_text(str(first))
        raise_oom_score()
        pipe.tell(f"{first} {SCORE.read_text()}")

    with Pipe() as pipe:
        assert status_of(children(work)) == 0
        first, then = map(int, pipe.hear().split())
    return first, then


@linux
def test_worker_is_what_the_kernel_kills_before_its_master(children: Children) -> None:
    first, then = score_after(children, lambda score: min(score, 700))
    assert then == first + OOM_SCORE_MORE


@linux
def test_score_stays_within_what_the_kernel_takes(children: Children) -> None:
    _, then = score_after(children, lambda score: max(score, 900))
    assert then == 1000
