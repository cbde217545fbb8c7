"""First requests: no more at once than surely fit, and nobody waits for long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.monitor import first_request
from flask_workersize.monitor.first_request import (
    PATIENCE_SECONDS,
    FirstRequest,
    may_begin,
    taken_between,
)
from flask_workersize.resources.gauge import MemoryState
from flask_workersize.resources.processes import ProcessMemory, ResidentPeak
from flask_workersize.runtime.layout import Slot
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.worker_record import WorkerRecord
from tests.plain import MB

sizes = st.integers(0, 2000)


@given(sizes, st.integers(0, 9), sizes, sizes)
def test_more_than_one_begin_only_if_all_of_them_fit(
    free: int, beginning: int, most: int, planned: int
) -> None:
    if may_begin(free, beginning, most, planned):
        assert most <= free
        assert not beginning or (beginning + 1) * max(most, planned) <= free
        assert may_begin(free + 1, beginning, most, planned)
        assert may_begin(free, max(beginning - 1, 0), most, planned)


@given(sizes, sizes, sizes)
def test_one_alone_begins_if_what_is_known_fits(free: int, most: int, planned: int) -> None:
    assert may_begin(free, 0, most, planned) is (most <= free)


@given(st.integers(1, 9), sizes)
def test_where_the_plan_fits_all_begin_at_once(workers: int, planned: int) -> None:
    assert all(may_begin(workers * planned, others, 0, planned) for others in range(workers))


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        ((30, 30, 10), (90, 95, 10), 65),
        ((30, 30, 10), (32, 95, 10), 65),
        ((30, 80, 10), (35, 80, 10), 5),
        ((30, 30, 10), (50, 50, 30), 0),
        ((30, 30, 10), (25, 30, 10), 0),
    ],
    ids=["kept", "given back", "peak before", "files", "less"],
)
def test_what_was_taken_is_the_most_between_two_looks(
    before: tuple[int, int, int], after: tuple[int, int, int], taken: int
) -> None:
    assert taken_between(ResidentPeak(*before), ResidentPeak(*after)) == taken


class Server:
    """Workers that have served nothing yet, under a limit; figures in MB."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, used: int = 56, planned: int = 200, workers: int = 5
    ) -> None:
        self.now, self.used, self.is_group = 0.0, used, True
        self.resident = ResidentPeak()
        self.board = Scoreboard(workers, 2)
        monkeypatch.setattr(first_request, "peak_resident_memory", lambda pid: self.resident)
        monkeypatch.setattr("time.monotonic_ns", lambda: int((1 + self.now) * 1e9))
        self.rows = [self.row(age) for age in range(1, workers + 1)]
        self.firsts = [
            FirstRequest(self.board, row, planned * MB, self.read, lambda: self.now)
            for row in self.rows
        ]

    def row(self, age: int) -> WorkerRecord:
        row = self.board.allocate(age)
        assert row
        return row

    def read(self) -> MemoryState:
        return MemoryState(256 * MB, self.used * MB, self.is_group)

    def begin(self, *numbers: int) -> list[bool]:
        """Let workers try, each a moment after the one before."""
        begun = []
        for number in numbers:
            self.now += 0.001
            begun.append(self.firsts[number].begins())
        return begun

    def serve(self, number: int, took: int) -> None:
        """End the first request of a worker, which has taken so much and kept it."""
        self.board.cells[self.rows[number].slots[0] + Slot.SERVED] = 1
        self.used += took
        self.resident = ResidentPeak(took * MB, took * MB)
        assert self.firsts[number].is_over(holds_any=True)
        self.resident = ResidentPeak()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def test_first_requests_run_one_after_the_other_where_the_plan_does_not_fit(
    server: Server,
) -> None:
    assert server.begin(0, 1, 2, 1) == [True, False, False, False]
    server.serve(0, took=3)
    assert server.begin(2, 1) == [True, False]
    server.serve(2, took=3)
    assert server.begin(1) == [True]


def test_as_many_as_the_plan_has_room_for_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, planned=60)
    assert server.begin(0, 1, 2) == [True, True, False]


def test_one_that_took_much_leaves_no_room_for_the_next_and_says_so_when_it_is_gone(
    server: Server,
) -> None:
    """56 MB are used, and each takes 60 of the 230 up to the critical share."""
    for number in range(2):
        assert server.begin(number) == [True]
        server.serve(number, took=60)
    assert server.begin(2) == [False]
    server.board.release(1)
    server.board.release(2)
    assert server.begin(2) == [False]
    server.used -= 60
    assert server.begin(2) == [True]


def test_what_the_monitor_has_seen_a_worker_need_counts_as_well(server: Server) -> None:
    server.board.note_memory(0, ProcessMemory(20, 20, 10 * MB), ResidentPeak(), 0, False)
    assert server.begin(1) == [True]
    server.serve(1, took=3)
    server.used = 180
    assert server.begin(2) == [True]
    server.serve(2, took=3)
    server.board.note_memory(0, ProcessMemory(20, 20, 70 * MB), ResidentPeak(), 3, False)
    assert server.begin(3) == [False]


@pytest.mark.parametrize("used", [56, 250])
def test_nobody_waits_for_longer_than_a_second_and_all_that_wait_wait_at_the_same_time(
    server: Server, used: int
) -> None:
    """The first request never returns, or there is no room for any."""
    server.begin(0)
    server.used = used
    waiting = [1, 2, 3, 4]
    while server.now < PATIENCE_SECONDS:
        assert not any(server.begin(*waiting))
        server.now += 0.01
    server.now += 0.01
    assert server.begin(*waiting) == [True] * 4


def test_first_request_that_goes_on_holds_up_nobody_later(server: Server) -> None:
    server.begin(0)
    server.now += PATIENCE_SECONDS + 0.01
    assert server.begin(1, 2) == [True, False]


def test_wait_of_before_is_forgotten_once_no_connection_was_left(server: Server) -> None:
    assert server.begin(0, 1) == [True, False]
    server.serve(0, took=1)
    server.now += 3600
    assert server.begin(2, 1) == [True, False]


def test_connection_that_closes_without_a_request_was_none(server: Server) -> None:
    assert server.begin(0, 1) == [True, False]
    assert not server.firsts[0].is_over(holds_any=False)
    assert server.begin(1, 0) == [True, False]


def test_worker_of_several_threads_serves_one_to_begin_with(server: Server) -> None:
    assert server.begin(0, 0) == [True, False]
    assert not server.firsts[0].is_over(holds_any=True)
    server.now += PATIENCE_SECONDS
    assert server.begin(0) == [True]


def test_nobody_waits_where_the_limit_is_the_machines(server: Server) -> None:
    server.is_group = False
    assert server.begin(0, 0, 1, 2, 3, 4) == [True] * 6


def test_worker_of_several_threads_serves_as_many_as_surely_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(monkeypatch, used=6, planned=100)
    assert server.begin(0, 0, 1) == [True, True, True]
    assert server.begin(2) == [False]


def test_worker_that_is_gone_amid_its_first_request_holds_up_nobody(server: Server) -> None:
    assert server.begin(0, 1) == [True, False]
    server.board.release(1)
    assert server.begin(1) == [True]
