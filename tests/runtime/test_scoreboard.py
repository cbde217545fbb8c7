"""The shared table: who is in it, what it adds up to, and what a killed process leaves in it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_workersize.resources.processes import ProcessMemory, ResidentPeak, start_time
from flask_workersize.runtime.layout import NANOSECONDS, Slot
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import State, WorkerMemory
from flask_workersize.runtime.worker_record import WorkerRecord
from tests.children import Children, Pipe, status_of
from tests.plain import untimed

SOME_SERVED = 500


def given_row(board: Scoreboard, age: int = 1) -> WorkerRecord:
    """Return the row that a worker is given; there is one."""
    row = board.allocate(age)
    assert row is not None
    return row


def begin(row: WorkerRecord, number: int = 0) -> int:
    """Begin a request in a slot, and return the slot as the meter names it."""
    slot = row.slots[number]
    row.cells[slot + Slot.BEGUN] = time.monotonic_ns()
    return slot


def end(row: WorkerRecord, number: int = 0) -> None:
    """End the request of a slot."""
    slot = row.slots[number]
    row.cells[slot + Slot.BUSY] += time.monotonic_ns() - row.cells[slot + Slot.BEGUN]
    row.cells[slot + Slot.SERVED] += 1
    row.cells[slot + Slot.BEGUN] = 0


def serve(row: WorkerRecord, number: int = 0, times: int = 1) -> None:
    for _ in range(times):
        begin(row, number)
        end(row, number)


def fill(board: Scoreboard) -> list[int]:
    """Give every row to a worker, and return their ages."""
    ages = list(range(1, board.capacity + 1))
    for age in ages:
        given_row(board, age)
    return ages


# A row a worker


def test_new_table_is_empty_and_starting() -> None:
    now = Scoreboard(4, 2).read()
    assert (now.state, now.workers) == (State.STARTING, ())
    assert (
        now.stored["restarts"],
        now.stored["crashed"],
        now.total("served"),
        now.total("busy_ns") / 1e9,
    ) == (0, 0, 0, 0)
    assert (now.waiting, now.slots, now.busy) == (0, 0, 0)


def test_each_worker_has_a_row_with_a_slot_for_each_thread() -> None:
    board = Scoreboard(3, 2)
    for age in (1, 2, 3):
        given_row(board, age)
    rows = board.read().workers
    assert [row.age for row in rows] == [1, 2, 3]
    assert [row.slots for row in rows] == [2, 2, 2]
    assert len({row.number for row in rows}) == 3
    assert board.read().slots == 6


def test_row_tells_what_its_worker_wrote() -> None:
    board = Scoreboard(1, 2)
    row = given_row(board)
    (seen,) = board.read().workers
    assert (seen.pid, seen.start_time, seen.is_ready) == (0, 0, False)
    row.enter()
    (seen,) = board.read().workers
    assert (seen.pid, seen.start_time) == (os.getpid(), start_time(os.getpid()))
    assert not seen.is_ready
    assert board.read().ready == ()
    row.set_ready()
    assert [ready.pid for ready in board.read().ready] == [os.getpid()]


@pytest.mark.parametrize("speak", [WorkerRecord.beat, WorkerRecord.set_ready])
def test_worker_is_silent_from_its_fork_to_its_first_heartbeat(
    speak: Callable[[WorkerRecord], None],
) -> None:
    """To be ready is one: the main loop of a worker may begin with a long wait."""
    board = Scoreboard(1, 1)
    row = given_row(board)
    (seen,) = board.read().workers
    assert seen.silent_seconds == seen.lived_seconds
    speak(row)
    (seen,) = board.read().workers
    assert seen.silent_seconds < seen.lived_seconds


def test_running_request_is_busy_until_it_ends() -> None:
    board = Scoreboard(1, 2)
    row = given_row(board)
    begin(row, 1)
    (seen,) = board.read().workers
    assert (seen.busy, seen.served) == (1, 0)
    assert all(seconds >= 0 for seconds in seen.running_seconds)
    end(row, 1)
    (seen,) = board.read().workers
    assert (seen.busy, seen.served, seen.running_seconds) == (0, 1, ())
    assert seen.busy_ns / 1e9 > 0


def test_table_adds_up_its_rows() -> None:
    board = Scoreboard(2, 2)
    one, two = given_row(board, 1), given_row(board, 2)
    serve(one, times=3)
    serve(two, number=1, times=2)
    begin(one, 0)
    begin(two, 0)
    begin(two, 1)
    now = board.read()
    assert (now.total("served"), now.busy, now.slots, now.utilization) == (5, 3, 4, 0.75)
    assert now.total("busy_ns") / 1e9 == pytest.approx(
        sum(row.busy_ns / 1e9 for row in now.workers)
    )
    begin(one, 1)
    assert board.read().utilization == 1


def test_table_without_workers_is_not_busy() -> None:
    now = Scoreboard(2, 2).read()
    assert now.utilization == 0


def test_slot_that_asks_is_left_out() -> None:
    board = Scoreboard(2, 2)
    one, two = given_row(board, 1), given_row(board, 2)
    asking = begin(two, 1)
    begin(one, 0)
    assert board.read().busy == 2
    assert [row.busy for row in board.read(but=asking).workers] == [1, 0]
    for slot in (*one.slots, *two.slots):
        assert board.read(but=slot).busy == (1 if slot in (asking, one.slots[0]) else 2)


@pytest.mark.parametrize(
    ("held", "busy", "waiting"), [(0, 1, 0), (1, 1, 0), (2, 2, 0), (3, 2, 1), (9, 2, 7)]
)
@pytest.mark.parametrize("say", [WorkerRecord.note_held, WorkerRecord.take_no_more])
def test_slot_is_busy_too_that_waits_for_a_client(
    held: int, busy: int, waiting: int, say: Callable[[WorkerRecord, int], None]
) -> None:
    """One request runs. A worker that takes no more is occupied all the same."""
    board = Scoreboard(1, 2)
    row = given_row(board)
    slot = begin(row)
    say(row, held)
    assert (board.read().busy, board.read().waiting) == (busy, waiting)
    (seen,) = board.read(but=slot).workers
    assert (seen.busy, seen.waiting) == (min(max(held - 1, 0), 2), max(held - 3, 0))


def test_slot_that_asks_keeps_what_it_has_served() -> None:
    board = Scoreboard(1, 1)
    row = given_row(board)
    serve(row, times=7)
    assert board.read(but=begin(row)).total("served") == 7


@pytest.mark.parametrize(
    ("state", "is_leaving"),
    [
        (State.STARTING, False),
        (State.SERVING, False),
        (State.DRAINING, True),
        (State.STOPPING, True),
        (State.STOPPED, True),
    ],
)
def test_state_says_whether_the_deployment_leaves(state: State, is_leaving: bool) -> None:
    board = Scoreboard(1, 1)
    board.state = state
    assert board.read().state is state
    assert board.read().is_leaving is is_leaving


def test_what_waits_is_the_queue_of_waitress_and_what_waits_in_each_worker() -> None:
    board = Scoreboard(2, 1)
    for age, held in ((1, 3), (2, 4)):
        given_row(board, age).note_held(held)
    assert board.read().waiting == 5
    board.task_queue = 9
    assert board.task_queue == board.read().task_queue == 9
    assert board.read().waiting == 14


def test_worker_is_told_what_the_other_holds_that_holds_least() -> None:
    """Those that are not ready, or that hang, do not count: nobody could wait for them."""
    board = Scoreboard(4, 2)
    rows = [given_row(board, age) for age in (1, 2, 3)]
    for row in rows[:2]:
        row.set_ready()
    rows[0].note_held(5)
    rows[1].note_held(4)
    assert [row.others()[0] for row in rows[:2]] == [4, 5]
    rows[2].set_ready()
    assert [row.others()[0] for row in rows] == [0, 0, 4]
    rows[2].take_no_more()
    assert [row.others()[0] for row in rows] == [4, 5, 4]
    assert board.read().waiting == 5
    rows[2].note_held(0)
    board.release(3)
    assert [row.others()[0] for row in rows[:2]] == [4, 5]
    board.release(2)
    assert rows[0].others() == (None, False)


def test_worker_is_told_whether_that_other_has_a_free_thread() -> None:
    """It holds a request that has just ended, and less in a moment."""
    board = Scoreboard(3, 2)
    rows = [given_row(board, age) for age in (1, 2, 3)]
    for row, held in zip(rows, (2, 2, 9), strict=True):
        row.set_ready()
        row.note_held(held)
    assert rows[0].others() == (2, True)
    begin(rows[1], 0)
    assert rows[0].others() == (2, True)
    begin(rows[1], 1)
    assert rows[0].others() == (2, False)


def test_worker_that_hangs_is_left_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Scoreboard(2, 2)
    rows = [given_row(board, age) for age in (1, 2)]
    for row in rows:
        row.set_ready()
    rows[0].note_held(5)
    assert rows[0].others()[0] == 0
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now + 4 * NANOSECONDS)
    rows[0].beat()
    assert rows[0].others() == (None, False)


# Memory


def test_memory_is_unknown_until_it_is_noted() -> None:
    board = Scoreboard(1, 1)
    given_row(board)
    assert board.read().workers[0].memory is None


def sample(
    board: Scoreboard,
    rss: int,
    uss: int | None = None,
    pss: int | None = None,
    *,
    peak: int = 0,
    served: int = 0,
    warm: bool = False,
    number: int = 0,
) -> WorkerMemory:
    """Enter a sample of a worker, and return the ledger as a reader sees it.

    But for what the worker needs, of which there are tests of their own.
    """
    resident = ResidentPeak(rss, peak)
    memory = ProcessMemory(rss, pss, uss)
    noted = board.note_memory(number, memory, resident, served, is_warm=warm)
    read = next(row.memory for row in board.read().workers if row.number == number)
    assert read is not None
    assert noted == read._replace(age_seconds=0.0)
    return noted._replace(most_needed_bytes=0)


@pytest.mark.parametrize(("pss", "uss"), [(200, 100), (None, 100), (None, None), (0, 0)])
def test_memory_is_told_as_it_was_noted(pss: int | None, uss: int | None) -> None:
    board = Scoreboard(1, 1)
    given_row(board)
    memory = sample(board, 300, uss, pss)
    assert memory == WorkerMemory(300, pss, uss or 0, uss, None, uss or 0)
    assert memory.uss_bytes == uss


def test_first_and_warm_memory_stay_as_they_were_and_the_peak_only_rises() -> None:
    """Between two samples there may have been more: the resident peak tells how much."""
    board = Scoreboard(1, 1)
    given_row(board)
    sample(board, 300, 100, served=3)
    sample(board, 350, 150, served=25, warm=True)
    memory = sample(board, 340, 140, peak=390, served=30, warm=True)
    assert memory == WorkerMemory(340, None, 140, 100, 150, 190, 30)
    assert memory.grown_bytes == 0
    memory = sample(board, 380, 180, served=40, warm=True)
    assert memory == WorkerMemory(380, None, 180, 100, 150, 190, 40)
    assert memory.grown_bytes == 30


def test_resident_memory_between_two_samples_tells_what_is_private_now() -> None:
    """What is shared is taken to be as before."""
    board = Scoreboard(1, 1)
    given_row(board)
    sample(board, 300, 100, served=3)
    memory = board.note_resident(0, 340)
    known = memory._replace(age_seconds=0, most_needed_bytes=0)
    assert known == WorkerMemory(340, None, 140, 100, None, 100, 3)
    assert board.note_resident(0, 320).private_bytes == 120


def needed(board: Scoreboard, rss: int, peak: int = 0, files: int = 0, swapped: int = 0) -> int:
    """Enter resident memory of the first worker and its peak, and return what it needs."""
    board.note_resident(0, rss, ResidentPeak(rss, peak, files, swapped))
    return board.read().workers[0].needed_bytes


def test_worker_needs_what_it_has_taken_for_a_while() -> None:
    """And gave back before anybody looked: 200 are shared, and 60 of its own were there."""
    board = Scoreboard(1, 1)
    given_row(board)
    sample(board, 210, 10, peak=210)
    sample(board, 212, 12, peak=212, served=25, warm=True)
    assert needed(board, 212, peak=260) == 60
    assert needed(board, 255, peak=260) == 60, "the next one is no more"


def test_what_a_leak_has_taken_a_worker_does_not_need() -> None:
    board = Scoreboard(1, 1)
    given_row(board)
    sample(board, 210, 10, peak=210)
    sample(board, 230, 30, peak=230, served=25, warm=True)
    assert needed(board, 290, peak=290) == 30
    assert needed(board, 290, peak=300) == 40, "but what it has given back"


def test_leak_that_was_swapped_out_is_nothing_that_was_given_back() -> None:
    board = Scoreboard(1, 1)
    given_row(board)
    sample(board, 210, 10, peak=210)
    sample(board, 230, 30, peak=230, served=25, warm=True)
    assert needed(board, 220, peak=400, swapped=180) == 30
    assert needed(board, 250, peak=400, swapped=130) == 50, "20 were given back"


def test_worker_that_is_not_warm_needs_what_it_has() -> None:
    board = Scoreboard(1, 1)
    given_row(board)
    sample(board, 210, 10, peak=210)
    assert needed(board, 260, peak=260) == 60
    assert needed(board, 210, peak=260) == 60


def test_worker_needs_what_its_running_request_has_taken_so_far() -> None:
    """Before it has given it back; of a worker that is not warm that counts anyway."""
    board = Scoreboard(2, 1)
    for number in range(2):
        given_row(board, number + 1)
        sample(board, 210, 10, peak=210, number=number)
    sample(board, 212, 12, peak=212, served=25, warm=True)
    assert needed(board, 272, peak=272) == 12
    assert board.note_surge(0, 60).most_needed_bytes == 72
    assert needed(board, 212, peak=272) == 72
    board.note_resident(1, 270, ResidentPeak(270, 270, 0))
    assert board.note_surge(1, 60).most_needed_bytes == 70


def test_first_requests_that_have_just_begun_are_counted_and_what_one_took_is_known() -> None:
    board = Scoreboard(4, 1)
    rows = [given_row(board, age) for age in (1, 2, 3)]
    rows[0].begin_first()
    rows[1].begin_first()
    assert [board.first_requests(row, 60) for row in rows[:2]] == [(0, 0), (1, 0)]
    assert board.first_requests(rows[1], 0) == (0, 0)
    rows[0].end_first(40)
    assert board.first_requests(rows[1], 60) == (0, 40)
    board.release(1)
    assert board.first_requests(rows[1], 60) == (0, 40), "though that worker has ended"
    sample(board, 210, 10, peak=210, number=2)
    board.note_resident(2, 260, ResidentPeak(260, 260, 0))
    assert board.first_requests(rows[1], 60) == (0, 50), "by what the monitor has seen"
    assert not rows[1].has_served
    board.cells[rows[1].slots[0] + Slot.SERVED] = 1
    assert rows[1].has_served


def test_what_it_took_to_load_the_app_a_worker_does_not_need_again() -> None:
    board = Scoreboard(1, 1)
    given_row(board)
    sample(board, 210, 10, peak=400)
    assert needed(board, 210, peak=400) == 10


def test_pages_of_files_that_the_kernel_has_dropped_are_nothing_given_back() -> None:
    board = Scoreboard(1, 1)
    given_row(board)
    sample(board, 210, 50, peak=210)
    assert needed(board, 220, peak=220, files=100) == 60
    assert needed(board, 150, peak=220, files=30) == 60


def test_where_private_memory_is_not_told_it_is_what_came_after_the_first_sample() -> None:
    board = Scoreboard(1, 1)
    given_row(board)
    assert sample(board, 300).private_bytes == 0
    assert board.note_resident(0, 310).private_bytes == 10
    memory = sample(board, 350, warm=True)
    assert memory == WorkerMemory(350, None, 50, None, 50, 50)
    assert sample(board, 370, warm=True).grown_bytes == 20


def test_memory_of_one_worker_is_not_told_of_the_next_in_its_row() -> None:
    board = Scoreboard(1, 1)
    given_row(board, 1)
    sample(board, 300, 100, warm=True)
    board.release(1)
    for age in range(2, board.capacity + 1):
        given_row(board, age)
        board.release(age)
    given_row(board, 999)
    (again,) = board.read().workers
    assert (again.number, again.memory) == (0, None)
    assert sample(board, 200, 50) == WorkerMemory(200, None, 50, 50, None, 50)


# Workers that come and go


def test_row_of_a_worker_is_found_by_its_age() -> None:
    board = Scoreboard(2, 1)
    given_row(board, 1)
    given_row(board, 2)
    row = board.record_of(2)
    assert row is not None
    serve(row)
    assert [seen.served for seen in board.read().workers] == [0, 1]
    assert board.record_of(3) is None


def test_freed_row_is_given_again_and_is_blank() -> None:
    board = Scoreboard(2, 2)
    fill(board)
    row = board.record_of(1)
    assert row is not None
    row.enter()
    row.set_ready()
    serve(row, times=4)
    row.note_held(5)
    begin(row, 1)
    board.release(1)
    assert 1 not in [seen.age for seen in board.read().workers]
    again = given_row(board, 999)
    assert again.slots == row.slots
    (seen,) = (seen for seen in board.read().workers if seen.age == 999)
    assert (seen.pid, seen.start_time, seen.is_ready, seen.waiting) == (0, 0, False, 0)
    assert (seen.busy, seen.served, seen.busy_ns / 1e9) == (0, 0, 0)


def test_what_a_worker_has_served_stays_in_the_total() -> None:
    board = Scoreboard(1, 1)
    row = given_row(board)
    serve(row, times=4)
    before = board.read()
    board.release(1)
    after = board.read()
    assert (after.total("served"), after.workers) == (4, ())
    assert after.total("busy_ns") / 1e9 == pytest.approx(before.total("busy_ns") / 1e9)


@pytest.mark.parametrize(("leaves", "crashed"), [(True, 0), (False, 1)])
def test_worker_that_ends_without_leaving_counts_as_killed(leaves: bool, crashed: int) -> None:
    board = Scoreboard(1, 1)
    board.state = State.SERVING
    row = given_row(board)
    row.enter()
    if leaves:
        row.leave()
    board.release(1)
    assert (board.read().stored["crashed"], board.read().stored["restarts"]) == (crashed, 1)
    assert len(board.crashed([1])) == crashed
    assert board.crashed([2]) == []


@pytest.mark.parametrize(
    ("state", "restarts"),
    [(State.SERVING, 1), (State.DRAINING, 1), (State.STOPPING, 0), (State.STOPPED, 0)],
)
def test_worker_that_ends_counts_as_restarted_unless_the_server_stops(
    state: State, restarts: int
) -> None:
    board = Scoreboard(1, 1)
    given_row(board).leave()
    board.state = state
    board.release(1)
    assert (board.read().stored["restarts"], board.read().stored["crashed"]) == (restarts, 0)


def test_row_is_taken_from_a_worker_once() -> None:
    """Gunicorn may tell of its end twice, and of one that never had a row."""
    board = Scoreboard(1, 1)
    serve(given_row(board))
    for age in (1, 1, 2):
        board.release(age)
    assert (board.read().total("served"), board.read().stored["crashed"]) == (1, 1)


def test_healing_takes_the_rows_of_those_who_are_gone_without_a_word() -> None:
    board = Scoreboard(4, 1)
    for age in (1, 2, 3, 4):
        serve(given_row(board, age), times=age)
    board.sweep([2, 4, 9])
    now = board.read()
    assert [row.age for row in now.workers] == [2, 4]
    assert (now.stored["crashed"], now.total("served")) == (2, 10)
    board.sweep([2, 4])
    assert board.read().stored["crashed"] == 2


def test_reload_has_room_for_the_old_and_the_new_workers() -> None:
    board = Scoreboard(100, 1)
    assert board.capacity >= 200


@pytest.mark.parametrize(("workers", "threads"), [(10_000, 1), (1, 10_000), (10_000, 10_000)])
def test_largest_plan_has_a_table(workers: int, threads: int) -> None:
    board = Scoreboard(workers, threads)
    row = given_row(board)
    assert len(row.slots) == threads
    serve(row, threads - 1)
    assert board.read().total("served") == 1
    assert len(board.cells) * 8 < 300 * 1024 * 1024


def test_worker_that_finds_no_row_is_served_without_one() -> None:
    board = Scoreboard(1, 1)
    ages = fill(board)
    assert board.allocate(999) is None
    assert board.record_of(999) is None
    before = board.read()
    board.release(999)
    assert board.read().stored["crashed"] == before.stored["crashed"]
    assert len(board.read().workers) == len(ages)


def test_row_that_is_free_again_goes_to_a_worker_that_comes_later() -> None:
    board = Scoreboard(1, 1)
    ages = fill(board)
    assert board.allocate(999) is None
    board.release(ages[5])
    given_row(board, 1000)
    assert {row.age for row in board.read().workers} == {*ages, 1000} - {ages[5]}
    assert board.allocate(1001) is None


# What holds of any history


@dataclass
class History:
    """A table, and what it has to say after what was done to it."""

    board: Scoreboard = field(default_factory=lambda: Scoreboard(1, 2))
    ages: Any = field(default_factory=lambda: count(1))
    alive: dict[int, WorkerRecord] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    served: int = 0
    ended: int = 0
    killed: int = 0

    def pick(self, number: int) -> int | None:
        """Return one of the workers that live."""
        ages = sorted(self.alive)
        return ages[number % len(ages)] if ages else None

    def take(self, number: int) -> None:
        age = next(self.ages)
        row = self.board.allocate(age)
        assert (row is None) == (len(self.alive) == self.board.capacity)
        if row is not None:
            self.alive[age] = row

    def begin(self, number: int) -> None:
        age = self.pick(number)
        if age is not None:
            begin(self.alive[age], number % 2)

    def serve(self, number: int) -> None:
        age = self.pick(number)
        if age is not None:
            serve(self.alive[age], number % 2, times=number % 5)
            self.served += number % 5

    def leave(self, number: int) -> None:
        age = self.pick(number)
        if age is not None:
            self.alive[age].leave()
            self.left.add(age)

    def free(self, number: int) -> None:
        age = self.pick(number)
        if age is not None:
            self.board.release(age)
            self._gone(age)

    def sweep(self, number: int) -> None:
        gone = [age for age in self.alive if age % 3 == number % 3]
        self.board.sweep(set(self.alive) - set(gone))
        for age in gone:
            self._gone(age)

    def _gone(self, age: int) -> None:
        del self.alive[age]
        self.ended += 1
        self.killed += age not in self.left


STEPS: list[Callable[[History, int], None]] = [
    History.take,
    History.begin,
    History.serve,
    History.leave,
    History.free,
    History.sweep,
]


@settings(untimed, max_examples=200)
@given(
    st.integers(0, 70), st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 99)), max_size=40)
)
def test_totals_never_go_back_and_miss_nothing(
    first: int, steps: list[tuple[Callable[[History, int], None], int]]
) -> None:
    """Whatever workers come, serve, leave, are killed or are found gone, in any order."""
    history = History()
    for _ in range(first):
        history.take(0)
    before = history.board.read()
    for step, number in steps:
        step(history, number)
        now = history.board.read()
        assert (now.total("served"), now.stored["restarts"], now.stored["crashed"]) == (
            history.served,
            history.ended,
            history.killed,
        )
        assert {row.age for row in now.workers} == set(history.alive)
        assert now.total("busy_ns") / 1e9 >= before.total("busy_ns") / 1e9 - 1e-9
        assert 0 <= now.busy <= now.slots
        before = now


# Several processes


def test_workers_of_other_processes_are_seen(children: Children) -> None:
    board = Scoreboard(3, 1)

    def work(row: WorkerRecord) -> None:
        row.enter()
        row.set_ready()
        serve(row, times=SOME_SERVED)
        row.leave()

    rows = [given_row(board, age) for age in (1, 2, 3)]
    pids = [children(partial(work, row)) for row in rows]
    assert [status_of(pid) for pid in pids] == [0, 0, 0]
    now = board.read()
    assert [row.pid for row in now.workers] == pids
    assert len(now.ready) == 3
    assert now.total("served") == 3 * SOME_SERVED
    board.sweep([])
    assert (board.read().total("served"), board.read().stored["crashed"]) == (3 * SOME_SERVED, 0)


def test_totals_never_go_back_for_a_process_that_reads_while_others_write(
    children: Children,
) -> None:
    """Workers serve, and the master takes and gives rows, all at once; readers see each alike."""
    board = Scoreboard(2, 2)

    def watch() -> None:
        served = restarts = 0
        while board.state < State.STOPPING:
            now = board.read()
            assert now.total("served") >= served
            assert now.stored["restarts"] >= restarts
            assert now.busy <= now.slots
            served, restarts = now.total("served"), now.stored["restarts"]
        assert board.read().total("served") == 30 * SOME_SERVED

    def work(age: int) -> None:
        row = board.record_of(age)
        assert row is not None
        row.enter()
        serve(row, 0, times=SOME_SERVED // 2)
        serve(row, 1, times=SOME_SERVED // 2)

    readers = [children(watch), children(watch)]
    for age in range(1, 31, 3):
        workers = []
        for one in (age, age + 1, age + 2):
            given_row(board, one)
            workers.append(children(partial(work, one)))
        assert [status_of(pid) for pid in workers] == [0, 0, 0]
        board.sweep([])
    board.state = State.STOPPED
    assert [status_of(pid) for pid in readers] == [0, 0]


def test_worker_that_is_killed_while_it_writes_leaves_a_table_that_heals(
    children: Children,
) -> None:
    """What it had counted stays, what it ran is over, and the next in its row begins anew."""
    board = Scoreboard(1, 2)
    board.state = State.SERVING
    total = 0
    for age in range(1, 6):
        row = given_row(board, age)
        with Pipe() as pipe:

            def work(row: WorkerRecord = row, pipe: Pipe = pipe) -> None:
                row.enter()
                serve(row, times=SOME_SERVED)
                pipe.tell("served some")
                while True:
                    serve(row)
                    begin(row, 1)

            pid = children(work)
            pipe.hear()
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == -signal.SIGKILL
        before = board.read()
        (dead,) = before.workers
        assert (dead.pid, dead.age) == (pid, age)
        assert dead.served >= SOME_SERVED
        total += dead.served
        board.release(age)
        after = board.read()
        assert (after.total("served"), after.stored["crashed"], after.busy, after.workers) == (
            total,
            age,
            0,
            (),
        )
    serve(given_row(board, 6))
    assert [seen.served for seen in board.read().workers] == [1]


def test_master_that_is_killed_while_it_changes_the_table_does_not_hold_up_who_reads() -> None:
    """The first word is odd for ever then; what is read may count a worker twice, and is read."""
    board = Scoreboard(1, 1)
    serve(given_row(board), times=3)
    board.cells[0] += 1
    assert board.cells[0] % 2 == 1
    assert board.read().total("served") == 3
    assert [row.age for row in board.read().workers] == [1]


# Listeners


def test_listeners_are_noted_as_family_and_inode() -> None:
    board = Scoreboard(1, 1)
    assert board.listeners == []
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket(socket.AF_UNIX) as two:
        board.set_listeners([one, two])
        assert board.listeners == [
            (socket.AF_INET, os.fstat(one.fileno()).st_ino),
            (socket.AF_UNIX, os.fstat(two.fileno()).st_ino),
        ]


@pytest.mark.parametrize(("number", "is_known"), [(8, True), (9, False)])
def test_more_listeners_than_there_is_room_for_are_not_known(number: int, is_known: bool) -> None:
    board = Scoreboard(1, 1)
    sockets = [socket.socket() for _ in range(number)]
    board.set_listeners(sockets)
    assert (board.listeners is not None) is is_known
    for item in sockets:
        item.close()


def test_listener_that_is_no_file_is_not_known() -> None:
    """As on Windows, where a socket has no inode."""
    board = Scoreboard(1, 1)
    closed = socket.socket()
    closed.close()
    board.set_listeners([closed])
    assert board.listeners is None
