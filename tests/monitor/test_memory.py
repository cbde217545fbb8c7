"""The task of memory: what is measured and when, what is done and logged, and how often."""

from __future__ import annotations

import mmap
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator

import pytest

from flask_workersize import SizingPlan
from flask_workersize.monitor.guard import CALM_SECONDS, WARM_REQUESTS
from flask_workersize.monitor.loop import Look
from flask_workersize.monitor.memory import (
    LATELY_SECONDS,
    LOG_SECONDS,
    VERY_OFTEN_SECONDS,
    GuardTask,
)
from flask_workersize.monitor.observation import Rules
from flask_workersize.monitor.remedy import Remedy
from flask_workersize.monitor.sampling import (
    EXPECTING_SECONDS,
    OFTEN_SECONDS,
    SELDOM_SECONDS,
    TURN_SECONDS,
    WARMING_SECONDS,
)
from flask_workersize.monitor.scaling import Scaler
from flask_workersize.resources.gauge import MemoryGauge, MemoryState
from flask_workersize.resources.holders import NO_HOLDERS, Holders
from flask_workersize.runtime.layout import Slot
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import GuardState, Snapshot, State, WorkerMemory, WorkerStats
from tests.children import Children, Pipe, kill
from tests.plain import MB, plan
from tests.runtime.workers import forks

LIMIT_MB = 1000
RULES = Rules()


class Figures(MemoryGauge):
    """Reads what the test says, in MB."""

    def __init__(self, used: float = 100, is_group: bool = True) -> None:
        self.used, self.limit, self.is_group = used, LIMIT_MB, is_group
        self.held = NO_HOLDERS

    def read(self) -> MemoryState:
        return MemoryState(self.limit * MB, int(self.used * MB), self.is_group)

    def holders(self, state: MemoryState, workers: Collection[int]) -> Holders:
        return self.held


class Notebook(Scaler):
    """A scaler that writes down what it is told, and tells the board as a real one does.

    :param board: the shared table
    """

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self.obeys = True
        self.is_quick = False
        """Whether the successor is there at once, and as large."""
        self.recycled: list[int] = []
        self.adjusted: list[tuple[str, int]] = []
        self.pressed = self.ended = 0

    def recycle(self, row: WorkerStats) -> bool:
        if self.obeys:
            if not self.is_quick:
                self._board.tell_to_leave(row.number)
            self.recycled.append(row.age)
        return self.obeys

    def scale(self) -> None:
        self.adjusted.append(("guard", self._board.stand_ins - self._board.removed))

    def reconcile(self, look: Look) -> None:
        self.pressed += 1

    def end_server(self) -> None:
        self.ended += 1


class Grown:
    """A worker that takes as much memory as it is told to.

    :param board: the shared table
    :param age: its age
    :param children: forks it
    :param shared: memory that it has in common with this process
    """

    def __init__(
        self, board: Scoreboard, age: int, children: Children, shared: mmap.mmap | None = None
    ) -> None:
        self.board, self.age = board, age
        row = board.allocate(age)
        assert row is not None
        self.row = row
        self._orders, self._answers = Pipe(), Pipe()

        def work() -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self.row.enter()
            self.row.set_ready()
            self._answers.tell("ready")
            held = []
            for order in iter(self._orders.hear, ""):
                if shared is not None and order == "share":
                    held.append(bytearray(sum(shared[:: mmap.PAGESIZE]) & 1))
                else:
                    held.append(bytearray(b"x") * (int(order) * MB))
                self._answers.tell("done")

        self.pid = children(work)
        assert self._answers.hear() == "ready"

    def order(self, what: str) -> None:
        """Have something done, and wait until it is."""
        self._orders.tell(what)
        assert self._answers.hear() == "done"

    def take(self, megabytes: int) -> None:
        """Take memory."""
        self.order(str(megabytes))

    def serve(self, count: int = WARM_REQUESTS) -> None:
        """Have served so many requests."""
        self.row.cells[self.row.slots[0] + Slot.SERVED] += count

    def begin(self) -> None:
        """Begin a request."""
        self.row.cells[self.row.slots[0]] = time.monotonic_ns() - 1_000_000

    def end(self) -> None:
        """End a request that may run."""
        self.row.cells[self.row.slots[0]] = 0

    def go(self) -> None:
        """End, and be seen to have ended."""
        kill(self.pid)
        self.board.release(self.age)

    def close(self) -> None:
        for pipe in (self._orders, self._answers):
            pipe.__exit__()


class Site:
    """A server with a guard, at a time of the test's own.

    :param children: forks the workers
    """

    def __init__(self, children: Children) -> None:
        self._children = children
        self.board = Scoreboard(2, 1)
        self.board.state = State.SERVING
        self.scaler = Notebook(self.board)
        self.gauge = Figures()
        self.workers: dict[int, Grown] = {}
        self.now = 1000.0

    def guard(self, rules: Rules | None = RULES, of: SizingPlan | None = None) -> GuardTask:
        """Return the guard that looks from now on."""
        self.task = GuardTask(
            self.board,
            Remedy(self.board, of or plan({"NOW_LMS_WORKERS": "3"}), 0.7),
            rules,
            self.scaler,
            self.gauge,
        )
        return self.task

    def start(self, *ages: int, shared: mmap.mmap | None = None) -> list[Grown]:
        """Start workers; they are those that are planned, if there were none."""
        if not self.workers:
            self.board.planned = len(ages)
        for age in ages:
            self.workers[age] = Grown(self.board, age, self._children, shared)
        return [self.workers[age] for age in ages]

    def run(self, times: int = 1, after: float = 0.1, used: float | None = None) -> None:
        """Let the guard look, with so much time before each look."""
        if used is not None:
            self.gauge.used = used
        for _ in range(times):
            self.now += after
            self.task.sampling.run(self.now, self.board.read)
            self.task.run(self.now, self.board.read)

    def warm_up(self) -> None:
        """Have every worker measured, and again when it is warm."""
        self.run(len(self.workers))
        for one in self.workers.values():
            one.serve()
        self.run(len(self.workers))

    def state(self) -> GuardState:
        """Return what the guard has to say."""
        return self.board.guard

    def ledger(self, age: int) -> WorkerMemory:
        """Return what is known of a worker's memory."""
        (row,) = (row for row in self.board.read().workers if row.age == age)
        assert row.memory is not None
        return row.memory

    def own(self, age: int) -> int:
        """Return what was last measured of a worker, in MB."""
        return self.ledger(age).private_bytes // MB


@pytest.fixture
def site(children: Children) -> Iterator[Site]:
    site = Site(children)
    yield site
    for one in site.workers.values():
        one.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what was said, each line with its level."""
    caplog.set_level("INFO", "flask_workersize")
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


# What is written down


def test_guard_says_that_it_is_on_and_how_near_memory_is(site: Site) -> None:
    assert site.state() is GuardState.OFF
    site.guard()
    assert site.state() is GuardState.OK
    site.run(used=321)
    now = site.board.read()
    assert (now.stored["memory_limit_bytes"], now.stored["memory_used_bytes"]) == (
        1000 * MB,
        321 * MB,
    )


@forks
def test_where_nobody_guards_all_is_written_down_and_nothing_is_done(site: Site) -> None:
    """The report and what is learnt need it, and a limit that has changed is followed."""
    site.guard(None)
    (one,) = site.start(1)
    site.warm_up()
    one.take(30)
    site.run(3, used=999)
    now = site.board.read()
    memory = (now.stored["memory_limit_bytes"], now.stored["memory_used_bytes"])
    assert memory == (1000 * MB, 999 * MB)
    assert now.workers[0].memory is not None
    assert site.state() is GuardState.OFF
    assert site.task.interval == SELDOM_SECONDS
    assert (site.scaler.adjusted, site.scaler.recycled) == ([], [])
    assert site.scaler.pressed == 5


def test_memory_is_written_down_while_the_server_drains_and_nothing_is_done(site: Site) -> None:
    site.guard()
    site.board.state = State.DRAINING
    site.run(used=990)
    assert site.board.read().stored["memory_used_bytes"] == 990 * MB
    assert site.scaler.pressed == 0
    assert site.task.interval == SELDOM_SECONDS
    site.task.end(site.board.read())


# What is measured


@forks
def test_worker_is_measured_when_it_is_ready_one_at_each_look(site: Site) -> None:
    """Each costs some milliseconds."""
    site.guard()
    site.start(1, 2)
    for measured in (1, 2, 2):
        site.run()
        assert sum(row.memory is not None for row in site.board.read().workers) == measured


@forks
def test_worker_is_measured_again_when_it_is_warm_and_then_in_its_turn(site: Site) -> None:
    """One that has served in a moment, one that has not after a longer while."""
    site.guard()
    (one,) = site.start(1)
    site.run()
    fresh = site.own(1)
    one.take(30)
    one.serve(WARM_REQUESTS - 1)
    site.run()
    assert site.own(1) == fresh
    one.serve(1)
    site.run()
    assert fresh + 25 < site.own(1) < fresh + 40
    warm = site.ledger(1).private_bytes
    assert (site.ledger(1).first_bytes or 0) // MB == fresh
    one.take(30)
    site.run(after=TURN_SECONDS / 2)
    assert site.own(1) < fresh + 40
    site.run(after=TURN_SECONDS / 2)
    assert site.own(1) > fresh + 55
    assert site.ledger(1).warm_bytes == warm
    one.take(30)
    one.serve(1)
    site.run(after=0.001)
    assert site.own(1) < fresh + 70
    assert OFTEN_SECONDS <= site.task.sampling.interval <= SELDOM_SECONDS
    site.run(after=TURN_SECONDS - 0.01)
    assert site.own(1) > fresh + 85


@forks
def test_workers_are_measured_one_after_the_other_the_longest_unread_first(site: Site) -> None:
    site.guard()
    site.start(1, 2, 3)
    site.warm_up()
    order = []
    for _ in range(6):
        site.run(after=TURN_SECONDS)
        order.append(min(site.workers, key=lambda age: site.ledger(age).age_seconds))
    assert order == [1, 2, 3, 1, 2, 3]


@forks
def test_worker_that_has_not_loaded_the_app_is_not_measured(site: Site) -> None:
    """Nor does it keep the others from their turn."""
    site.guard()
    blank = site.board.allocate(9)
    assert blank is not None
    blank.enter()
    site.start(1)
    site.run(2)
    assert [row.memory is None for row in site.board.read().workers] == [True, False]


@forks
def test_page_by_page_it_is_counted_only_to_choose(site: Site) -> None:
    """While memory is short for long, that would take a good part of a CPU."""
    site.guard()
    one, _ = site.start(1, 2)
    site.warm_up()
    warm = site.own(1)
    one.take(10)
    site.run(5, used=750)
    assert site.scaler.recycled == []
    assert warm + 5 < site.own(1) < warm + 15
    assert site.ledger(1).peak_bytes // MB == warm, "that is of a full sample"
    one.take(20)
    site.run()
    assert site.scaler.recycled == [1]
    assert warm + 25 < site.own(1) < warm + 40


@forks
def test_process_that_has_just_gone_is_not_measured(site: Site) -> None:
    site.guard(Rules(worker_max_bytes=1))
    one, _ = site.start(1, 2)
    kill(one.pid)
    site.run(3, used=950)
    gone, there = site.board.read().workers
    assert gone.memory is None
    assert there.memory is not None


# A leak


@forks
def test_worker_that_has_grown_most_is_recycled_with_one_line(
    site: Site, said: Callable[[], list[str]]
) -> None:
    site.guard()
    _, two, three = site.start(1, 2, 3)
    site.warm_up()
    two.take(60)
    three.take(30)
    site.run(used=750)
    assert site.scaler.recycled == [2]
    assert site.state() is GuardState.RECYCLING
    (line,) = said()
    pattern = rf"INFO memory: recycling worker {two.pid} \(grew (\d+) MB\); 750 of 1000 MB in use\."
    match = re.fullmatch(pattern, line)
    assert match
    assert 55 < int(match[1]) < 70
    # Those who read events are not told the number of a process.
    (event,) = site.board.events.read()
    assert event.text == f"memory: recycling a worker (grew {match[1]} MB); 750 of 1000 MB in use"


@forks
def test_what_a_worker_shares_is_no_growth(site: Site) -> None:
    """It would not be given back."""
    shared = mmap.mmap(-1, 100 * MB)
    shared.write(b"x" * len(shared))
    site.guard()
    one, two = site.start(1, 2, shared=shared)
    site.warm_up()
    one.order("share")
    two.take(30)
    site.run(used=750)
    assert site.scaler.recycled == [2]


@forks
def test_what_a_running_request_has_taken_is_no_growth_before_it_has_ended(site: Site) -> None:
    site.guard()
    one, _ = site.start(1, 2)
    site.warm_up()
    site.run(used=610)
    one.begin()
    one.take(140)
    site.run(used=750)
    assert site.scaler.recycled == []
    one.end()
    site.run()
    assert site.scaler.recycled == [1]
    assert site.scaler.adjusted == []


@forks
def test_what_a_running_request_has_taken_all_may_take_at_once(site: Site) -> None:
    """It counts before it was given back: then all could have begun one."""
    site.guard()
    one, *_ = site.start(1, 2, 3)
    site.warm_up()
    site.run(used=510)
    one.begin()
    one.take(240)
    site.run(used=750)
    assert site.scaler.adjusted == [("guard", -1)]
    assert site.scaler.recycled == []
    assert 240 <= site.ledger(1).most_needed_bytes // MB < 260


def test_memory_that_goes_fast_is_short_before_it_is_used(site: Site) -> None:
    site.guard()
    one, _ = site.start(1, 2)
    site.warm_up()
    one.take(30)
    site.run(5, used=300)
    assert site.scaler.recycled == []
    site.run(used=600)
    assert site.scaler.recycled == [1]


@forks
def test_nobody_else_is_recycled_until_another_one_is_there(site: Site) -> None:
    site.guard()
    workers = site.start(1, 2)
    site.warm_up()
    workers[0].take(60)
    workers[1].take(30)
    site.run(5, used=750)
    assert site.scaler.recycled == [1]
    workers[0].go()
    site.run(5)
    assert site.scaler.recycled == [1]
    site.start(3)
    site.run(2)
    assert site.scaler.recycled == [1, 2]


@forks
def test_worker_that_cannot_be_told_is_told_again(
    site: Site, said: Callable[[], list[str]]
) -> None:
    """It may have ended a moment ago."""
    site.guard()
    one, _ = site.start(1, 2)
    site.warm_up()
    one.take(30)
    site.scaler.obeys = False
    site.run(used=750)
    assert said() == []
    assert site.state() is GuardState.OK
    site.scaler.obeys = True
    site.run(after=0.01)
    assert site.scaler.recycled == [1]


@forks
def test_last_worker_gets_a_successor_and_then_goes(
    site: Site, said: Callable[[], list[str]]
) -> None:
    site.guard()
    (one,) = site.start(1)
    site.warm_up()
    one.take(30)
    site.run(3, used=750)
    assert site.scaler.adjusted == [("guard", 1)]
    assert site.board.wanted == 2
    site.start(2)
    site.run(3)
    assert site.scaler.adjusted == [("guard", 1), ("guard", 0)]
    assert site.scaler.recycled == []
    (line,) = said()
    assert line.startswith(f"INFO memory: starting a worker to replace {one.pid} (grew ")
    one.go()
    site.run(used=300)
    assert site.state() is GuardState.RECYCLING
    site.run(after=LATELY_SECONDS)
    assert site.state() is GuardState.OK


@forks
def test_worker_above_its_bound_is_recycled_though_there_is_memory(site: Site) -> None:
    site.guard(Rules(worker_max_bytes=100 * MB))
    one, _ = site.start(1, 2)
    site.run(3)
    assert site.scaler.recycled == []
    one.take(100)
    site.run()
    assert site.scaler.recycled == [1]


@forks
def test_decision_is_taken_on_who_is_there_now(site: Site) -> None:
    """What was seen may be a moment old: by then the last one must not go."""
    site.guard()
    one, two = site.start(1, 2)
    site.warm_up()
    one.take(30)
    before = site.board.read()
    two.go()
    site.gauge.used = 750
    site.task.run(site.now + 1, lambda: before)
    assert site.scaler.recycled == []


@forks
def test_server_that_has_just_begun_to_drain_is_left_alone(site: Site) -> None:
    site.guard()
    one, _ = site.start(1, 2)
    site.warm_up()
    one.take(30)
    before = site.board.read()
    site.board.state = State.DRAINING
    site.gauge.used = 750
    site.task.run(site.now + 1, lambda: before)
    assert site.scaler.recycled == []


# A plan that is too large


@forks
def test_plan_that_is_too_large_gets_fewer_workers_and_a_line_that_says_what_to_set(
    site: Site, said: Callable[[], list[str]]
) -> None:
    site.guard(of=plan(memory_mb=900))
    for one in site.start(1, 2, 3):
        one.take(60)
    site.warm_up()
    site.run(used=950)
    assert site.scaler.adjusted == [("guard", -1)]
    assert site.state() is GuardState.REDUCED
    (line,) = said()
    pattern = (
        r"WARNING memory: removing a worker; 950 of 1000 MB in use\. Recycling won't help: a "
        r"worker needs (\d+) MB\. The plan is too large\. Set NOW_LMS_WORKERS=1 or "
        r"NOW_LMS_WORKER_MEMORY_MB=900\."
    )
    match = re.fullmatch(pattern, line)
    assert match
    assert 60 <= int(match[1]) < 90


def reduced(site: Site, pause: float = 1) -> None:
    """Have one worker fewer, and see the oldest one go."""
    site.run(used=950)
    site.workers.pop(min(site.workers)).go()
    site.run(after=pause, used=300)


@forks
def test_number_grows_back_when_memory_was_free_for_a_while(
    site: Site, said: Callable[[], list[str]]
) -> None:
    site.guard()
    site.start(1, 2)
    site.warm_up()
    reduced(site)
    assert site.board.wanted == 1
    site.run(after=CALM_SECONDS - 0.5)
    assert site.scaler.adjusted == [("guard", -1)]
    site.run(after=0.5)
    assert site.scaler.adjusted == [("guard", -1), ("guard", 0)]
    assert (
        said()[-1] == "INFO memory: adding a worker (there is room again); 300 of 1000 MB in use."
    )
    site.start(3)
    site.run(3, after=CALM_SECONDS)
    assert site.state() is GuardState.OK
    assert len(site.scaler.adjusted) == 2


@forks
def test_growing_back_too_early_doubles_the_wait(site: Site) -> None:
    site.guard()
    site.start(1, 2)
    site.warm_up()
    reduced(site)
    site.run(after=CALM_SECONDS)
    assert site.board.wanted == 2
    site.start(3)
    site.warm_up()
    reduced(site)
    assert site.board.wanted == 1
    site.start(4)
    site.workers.pop(3).go()
    site.run(used=300)
    before = site.board.wanted
    site.run(after=2 * CALM_SECONDS - 2)
    assert site.board.wanted == before == 1
    site.run(after=2)
    assert site.board.wanted == 2


@forks
def test_number_does_not_grow_back_where_all_have_no_room_at_their_most(site: Site) -> None:
    site.guard()
    one, two = site.start(1, 2)
    one.take(30)
    two.take(30)
    site.warm_up()
    reduced(site)
    site.gauge.limit = 330
    site.run(5, after=CALM_SECONDS)
    assert site.board.wanted == 1
    site.gauge.limit = LIMIT_MB
    site.run(5, after=CALM_SECONDS)
    assert site.board.wanted == 2


# The kernel was faster


@forks
def test_kill_by_the_kernel_is_answered_with_one_worker_fewer_once(
    site: Site, said: Callable[[], list[str]]
) -> None:
    """However long ago that was, and however much has been done since."""
    site.guard()
    workers = site.start(1, 2, 3)
    site.warm_up()
    site.board.workers_oom_killed += 1
    site.run(used=300)
    assert site.scaler.adjusted == [("guard", -1)]
    (line,) = said()
    assert line.startswith(
        "WARNING memory: removing a worker; 300 of 1000 MB in use. A worker was OOM-killed: the "
        "plan is too large for its peaks. Set NOW_LMS_WORKERS="
    )
    workers[0].go()
    workers[1].take(30)
    site.scaler.is_quick = True
    site.run(60, used=750)
    assert len(site.scaler.recycled) > 40
    assert site.scaler.adjusted == [("guard", -1)]


@forks
def test_warnings_do_not_make_it_forget_what_was_answered(site: Site) -> None:
    site.guard()
    site.gauge.is_group = False
    workers = site.start(1, 2, 3)
    site.warm_up()
    site.board.workers_oom_killed += 1
    site.run()
    workers[0].go()
    site.run(60, after=0.1, used=950)
    assert site.state() is GuardState.WARN
    assert site.scaler.adjusted == [("guard", -1)]


@forks
def test_kill_before_the_monitor_was_started_again_is_answered_once(site: Site) -> None:
    """By the one that is there when it is known."""
    site.board.workers_oom_killed += 1
    site.guard()
    site.start(1, 2, 3)
    site.run(3)
    assert site.scaler.adjusted == [("guard", -1)]
    site.guard()
    site.run(3)
    assert site.scaler.adjusted == [("guard", -1)]


def test_memory_is_short_from_the_share_on_that_the_operator_set(site: Site) -> None:
    site.guard(Rules(recycle_share=0.5))
    assert not site.task.is_short
    for used, expected in [(499, False), (500, True), (400, False)]:
        site.run(used=used)
        assert site.task.is_short is expected


# How often it looks, and how often it says so


@forks
def test_it_looks_as_often_as_memory_demands(site: Site) -> None:
    site.guard()
    one, _ = site.start(1, 2)
    site.warm_up()
    # To 900 MB, the critical share, it takes so long at the fastest.
    for used, turn in [(300, 600 / 3072), (516, 0.125), (860, OFTEN_SECONDS)]:
        site.run(after=10, used=used)
        assert site.task.interval == turn
    one.take(30)
    site.run(after=10)
    site.run()
    assert site.task.interval == VERY_OFTEN_SECONDS
    site.run(after=10)
    assert site.task.interval == OFTEN_SECONDS


@forks
def test_it_looks_seldom_at_a_machine_however_full_it_is(site: Site) -> None:
    site.guard()
    site.gauge.is_group = False
    site.start(1, 2)
    site.warm_up()
    site.run(after=10, used=950)
    assert site.task.interval == SELDOM_SECONDS


@forks
def test_it_looks_often_while_a_worker_is_about_to_be_ready(site: Site) -> None:
    """What it has grown before it is first measured would count as its size at the start."""
    site.guard()
    site.start(1)
    site.board.planned = 2
    site.run(3, used=100)
    assert site.task.sampling.interval == EXPECTING_SECONDS
    (two,) = site.start(2)
    site.run(3)
    assert site.task.sampling.interval > EXPECTING_SECONDS
    two.serve()
    site.run()
    assert site.task.sampling.interval > EXPECTING_SECONDS, "it is warm"


@forks
def test_it_looks_often_while_a_worker_that_serves_is_not_yet_warm(site: Site) -> None:
    site.guard()
    (one,) = site.start(1)
    site.run(3, used=100)
    assert site.task.sampling.interval > EXPECTING_SECONDS
    one.serve(WARM_REQUESTS - 2)
    site.run()
    assert site.task.sampling.interval == EXPECTING_SECONDS
    site.run(after=WARMING_SECONDS)
    assert site.task.sampling.interval > EXPECTING_SECONDS, "it is idle"
    one.serve(2)
    site.run(3)
    assert site.task.sampling.interval > EXPECTING_SECONDS, "it is warm"


@forks
def test_same_is_said_once_a_minute(site: Site, said: Callable[[], list[str]]) -> None:
    site.guard()
    site.gauge.is_group = False
    site.start(1, 2)
    site.warm_up()
    site.run(20, after=1, used=950)
    assert said() == [
        "WARNING memory: 950 of 1000 MB in use. Other processes use it: these workers grew 0 MB."
    ]
    site.run(after=LOG_SECONDS)
    assert len(said()) == 2


def test_hand_is_given_time_at_each_look(site: Site) -> None:
    site.guard()
    site.run(3)
    assert site.scaler.pressed == 3


# One process


def waitress(site: Site, exits: bool = False) -> GuardTask:
    """Return the guard of a server that is this very process."""
    row = site.board.allocate(1)
    assert row is not None
    row.enter()
    row.set_ready()
    return site.guard(Rules(exits=exits), plan(server="waitress"))


GROWN_BYTES = 40 * MB


def grown(site: Site) -> bytearray:
    """Serve until the server is warm, and then let it grow."""
    row = site.board.record_of(1)
    assert row is not None
    row.cells[row.slots[0] + Slot.SERVED] = WARM_REQUESTS
    site.run(3, used=100)
    return bytearray(b"x") * GROWN_BYTES


def test_server_of_one_process_is_warned_of_and_then_not_ready(
    site: Site, said: Callable[[], list[str]]
) -> None:
    waitress(site)
    held = grown(site)
    states = []
    for used in (699, 700, 900, 500):
        site.run(used=used)
        states.append(site.board.guard)
    assert states == [GuardState.OK, GuardState.WARN, GuardState.CRITICAL, GuardState.OK]
    assert len(held) == GROWN_BYTES
    assert (site.scaler.ended, site.board.is_exit_asked) == (0, False)
    first, second = said()
    pattern = r"WARNING memory: 700 of 1000 MB in use\. This server holds \d+ MB\."
    assert re.fullmatch(pattern, first)
    pattern = (
        r"WARNING memory: /ready fails now; 900 of 1000 MB in use\. This server holds \d+ MB\. "
        r"Give it more memory, or find what grows\. With NOW_LMS_MEMORY_GUARD=exit the "
        r"service manager restarts it in time\."
    )
    assert re.fullmatch(pattern, second)


def test_server_of_one_process_ends_once_where_it_is_to(
    site: Site, said: Callable[[], list[str]]
) -> None:
    waitress(site, exits=True)
    held = grown(site)
    site.run(used=899)
    assert (site.scaler.ended, site.board.is_exit_asked) == (0, False)
    site.run(5, used=900)
    assert (site.scaler.ended, site.board.is_exit_asked) == (1, True)
    pattern = (
        r"WARNING memory: stopping the server; 900 of 1000 MB in use\. This server holds \d+ MB\."
    )
    assert re.fullmatch(pattern, said()[-1])
    assert len(held) == GROWN_BYTES


def test_server_of_one_process_that_is_as_large_from_the_start_is_not_ended(site: Site) -> None:
    """It would be as large after a new start."""
    waitress(site, exits=True)
    site.run(5, used=950)
    assert site.state() is GuardState.WARN
    assert (site.scaler.ended, site.board.is_exit_asked) == (0, False)


def test_server_of_one_process_holds_what_it_really_holds(
    site: Site, said: Callable[[], list[str]]
) -> None:
    waitress(site)
    site.run()
    site.run(used=800)
    match = re.search(r"holds (\d+) MB", said()[0])
    assert match
    assert 20 < int(match[1]) < 1000


def test_server_of_one_process_is_measured_before_it_is_said_what_it_holds(
    site: Site, said: Callable[[], list[str]]
) -> None:
    """The guard may look first, and at any moment: 0 MB is never what a server holds."""
    task = waitress(site)
    site.gauge.used = 800
    for _ in range(3):
        site.now += 0.1
        task.run(site.now, site.board.read)
    (line,) = said()
    match = re.search(r"This server holds (\d+) MB\.$", line)
    assert match
    assert int(match[1]) > 20


def test_server_of_one_process_does_not_end_for_a_neighbour(
    site: Site, said: Callable[[], list[str]]
) -> None:
    waitress(site, exits=True)
    held = grown(site)
    site.gauge.held = Holders(others_bytes=500 * MB, other_name="ffmpeg")
    site.run(5, used=950)
    assert (site.scaler.ended, site.board.is_exit_asked) == (0, False)
    (line,) = said()
    assert "Not held by this server, but by other processes (such as ffmpeg): 500 MB" in line
    assert len(held) == GROWN_BYTES


@forks
def test_other_holders_are_said_within_a_minute_and_the_same_are_not(
    site: Site, said: Callable[[], list[str]]
) -> None:
    site.guard()
    site.start(1, 2)
    site.warm_up()
    site.gauge.held = Holders(shmem_bytes=800 * MB)
    site.run(5, after=1, used=950)
    site.gauge.held = Holders(others_bytes=700 * MB, other_name="one")
    site.run(3, after=1, used=950)
    site.gauge.held = Holders(others_bytes=801 * MB, other_name="two (2)")
    site.run(5, after=1, used=951)
    first, second = said()
    assert "but by tmpfs and shared memory: 800 MB." in first
    assert "but by other processes (such as one): 700 MB." in second
    # Nor the name of another.
    assert [event.text.partition(" in use. ")[2] for event in site.board.events.read()] == [
        "Not held by the workers, but by tmpfs and shared memory: 800 MB",
        "Not held by the workers, but by other processes",
    ]


@forks
def test_monitor_that_is_started_again_knows_what_workers_have_grown(site: Site) -> None:
    """The one before it has entered what they had when they were warm."""
    site.guard()
    (worker,) = site.start(1)
    site.warm_up()
    worker.take(60)
    site.guard()
    site.run(4, used=300)
    site.run(used=750)
    assert site.scaler.adjusted == [("guard", 1)]


@forks
def test_monitor_that_is_started_again_finds_the_stand_in_that_was_begun(site: Site) -> None:
    """And lets the old one go when it is ready; what was removed stays so until it is calm."""
    site.guard()
    (worker,) = site.start(1)
    site.warm_up()
    worker.take(60)
    site.run(used=750)
    assert site.board.stand_ins == 1
    site.guard()
    site.start(2)
    site.run(2)
    assert (site.board.stand_ins, site.board.wanted) == (0, 1)


@forks
def test_monitor_that_is_started_again_grows_back_what_was_removed(site: Site) -> None:
    site.guard()
    site.start(1, 2)
    site.warm_up()
    reduced(site)
    site.guard()
    site.run(used=300)
    assert site.board.wanted == 1
    site.run(after=CALM_SECONDS)
    assert site.board.wanted == 2


@forks
def test_monitor_that_is_started_again_waits_as_long_for_one_more_as_the_one_before(
    site: Site,
) -> None:
    """Else each new one would try at once what has failed before."""
    site.guard()
    site.start(1, 2)
    site.warm_up()
    reduced(site)
    site.run(used=300)
    site.run(after=CALM_SECONDS)
    assert site.board.wanted == 2
    site.start(3)
    site.warm_up()
    site.guard()
    reduced(site)
    site.guard()
    site.run(used=300)
    site.run(after=2 * CALM_SECONDS - 1)
    assert site.board.wanted == 1
    site.run(after=1)
    assert site.board.wanted == 2


@forks
def test_workers_are_not_looked_at_again_while_nothing_changes(site: Site) -> None:
    """The table of many costs more than all that is read else; what moves is looked at."""
    task = site.guard()
    site.start(1, 2)
    site.warm_up()
    looks: list[float] = []

    def look() -> Snapshot:
        looks.append(site.now)
        return site.board.read()

    def is_looked_at(used: float) -> bool:
        site.gauge.used = used
        site.now += SELDOM_SECONDS / 8
        task.run(site.now, look)
        return site.now in looks

    assert any(is_looked_at(300) for _ in range(9))
    assert not is_looked_at(301)
    assert is_looked_at(330), "it has moved"
    assert not any(is_looked_at(331) for _ in range(7))
    assert is_looked_at(331), "now and then"
