"""What is said of a worker that was killed, to the letter: the kernel's own count says by whom."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flask_workersize import SizingPlan
from flask_workersize.monitor.oom import (
    EXPIRE_SECONDS,
    INTERVAL_SECONDS,
    LATELY_SECONDS,
    OFTEN_SECONDS,
    SAY_SECONDS,
    OomDetector,
)
from flask_workersize.monitor.remedy import Remedy
from flask_workersize.resources.processes import ProcessMemory, ResidentPeak
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import State
from tests.children import Children, kill
from tests.plain import MB, plan
from tests.runtime.workers import await_ready, forks, serving_worker

pytestmark = forks

FOUR = plan({"NOW_LMS_WORKERS": "4"}, memory_mb=480)
LIMIT_MB = 512


class Site:
    """A deployment, its kernel, and the witness, at a time of the test's own.

    :param children: forks the workers
    """

    def __init__(self, children: Children) -> None:
        self._children = children
        self.board = Scoreboard(4, 1)
        self.board.state = State.SERVING
        self.board.note_usage(LIMIT_MB * MB, 0)
        self.count: int | None = 0
        self.is_short = False
        self.now = 1000.0
        self.pids: dict[int, int] = {}

    def loop(self, of: SizingPlan = FOUR) -> None:
        """Have a witness from now on."""
        self.board.planned = of.workers
        remedy = Remedy(self.board, of, 0.7)
        self.oom = OomDetector(self.board, remedy, lambda: self.count, lambda: self.is_short)
        self.run()

    def start(self, sizes: dict[int, int | None]) -> None:
        """Start workers of these ages, and note how many MB each has, where that is known."""
        for age, size in sizes.items():
            self.pids[age] = self._children(serving_worker(self.board, age))
            await_ready(self.board, len(self.pids))
            (number,) = (row.number for row in self.board.read().workers if row.age == age)
            if size is not None:
                memory = ProcessMemory(size * MB)
                self.board.note_memory(number, memory, ResidentPeak(), 0, is_warm=False)

    def kill(self, age: int, by_kernel: bool = True) -> None:
        """Have a worker killed; its master learns it after the kernel has counted it."""
        if by_kernel:
            self.count = (self.count or 0) + 1
        kill(self.pids[age])
        self.board.release(age)

    def run(self, after: float = INTERVAL_SECONDS) -> None:
        """Let the witness look, after so much time."""
        self.now += after
        self.oom.run(self.now, self.board.read)


@pytest.fixture
def site(children: Children) -> Site:
    return Site(children)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what was said, each line with its level."""
    caplog.set_level("INFO", "flask_workersize")
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


Said = Callable[[], list[str]]


def test_worker_that_the_kernel_killed_is_named_with_its_size_and_what_to_set(
    site: Site, said: Said
) -> None:
    """One of 212 MB fits into 70 % of 512 MB, and 480 MB were planned with."""
    site.start({1: 100, 2: 212, 3: 90, 4: 80})
    site.loop()
    site.kill(2)
    site.run()
    site.run()
    assert said() == [
        f"ERROR worker {site.pids[2]} was OOM-killed at 212 MB (limit 512 MB, plan 4 × 200 MB). "
        "Set NOW_LMS_WORKERS=1 or NOW_LMS_WORKER_MEMORY_MB=480."
    ]
    (event,) = site.board.events.read()
    assert event.text.startswith("a worker was OOM-killed at 212 MB (limit 512 MB, plan 4 × 200 MB")
    assert site.board.read().workers_advised == 1
    assert site.board.read().stored["oom_kills"] == 1


def test_kernel_may_count_before_the_master_knows(site: Site, said: Said) -> None:
    """It counts when it has decided, and the process takes a moment to end."""
    site.start({1: 300, 2: 300})
    site.loop()
    site.count = 1
    site.run()
    assert said() == []
    assert site.board.read().stored["oom_kills"] == 1
    site.kill(1, by_kernel=False)
    site.run()
    (line,) = said()
    assert line.startswith(f"ERROR worker {site.pids[1]} was OOM-killed at 300 MB (")


@pytest.mark.parametrize(
    ("count", "kernel"), [(7, "counted no OOM kill"), (None, "does not count OOM kills")]
)
def test_worker_that_was_killed_by_somebody_else_is_not_called_a_kill_for_memory(
    site: Site, said: Said, count: int | None, kernel: str
) -> None:
    site.start({1: 300, 2: 300})
    site.count = count
    site.loop()
    site.kill(2, by_kernel=False)
    site.run()
    site.run()
    assert said() == [
        f"WARNING 1 worker crashed or got killed by a signal (process {site.pids[2]}); the kernel "
        f"{kernel}."
    ]
    (event,) = site.board.events.read()
    assert event.text == f"1 worker crashed or got killed by a signal; the kernel {kernel}"
    assert site.board.read().stored["oom_kills"] == 0


def test_several_that_were_killed_by_somebody_else_are_all_named(site: Site, said: Said) -> None:
    site.start({1: None, 2: None, 3: None})
    site.loop()
    for age in (1, 3):
        site.kill(age, by_kernel=False)
    site.run()
    (line,) = said()
    for age in (1, 3):
        assert str(site.pids[age]) in line
    assert line.startswith("WARNING 2 workers crashed or got killed by a signal (process ")
    assert str(site.pids[2]) not in line


def test_of_several_that_the_kernel_killed_the_largest_is_named(site: Site, said: Said) -> None:
    site.start({1: 100, 2: 160, 3: None})
    site.loop()
    for age in (1, 2, 3):
        site.kill(age)
    site.run()
    (line,) = said()
    assert f" worker {site.pids[2]} was OOM-killed at 160 MB, and 2 more (" in line
    assert site.board.read().stored["oom_kills"] == 3


def test_kills_of_both_kinds_at_once_are_each_counted(site: Site, said: Said) -> None:
    site.start({1: 100, 2: 160})
    site.loop()
    site.kill(2)
    site.kill(1, by_kernel=False)
    site.run()
    by_others, by_kernel = said()
    assert by_others.startswith("WARNING 1 worker crashed or got killed by a signal (process ")
    assert " was OOM-killed at 160 MB (limit 512 MB" in by_kernel
    assert site.board.read().stored["oom_kills"] == 1


def test_worker_of_which_nothing_was_measured_is_told_without_its_size(
    site: Site, said: Said
) -> None:
    """It is taken to have had twice as much as was planned: one of 400 MB fits."""
    site.start({1: None, 2: 90})
    site.loop()
    site.kill(1)
    site.run()
    assert said() == [
        "ERROR a worker was OOM-killed (limit 512 MB, plan 4 × 200 MB). Set NOW_LMS_WORKERS=1 or "
        "NOW_LMS_WORKER_MEMORY_MB=480."
    ]


def test_advice_is_always_fewer_than_there_were(site: Site, said: Said) -> None:
    """A burst may have made one large that was small when it was last measured."""
    site.start({1: 10})
    site.loop()
    site.kill(1)
    site.run()
    assert said()[0].endswith(" Set NOW_LMS_WORKERS=3 or NOW_LMS_WORKER_MEMORY_MB=160.")


def test_kill_while_workers_leave_says_nothing_of_those_that_stay(site: Site, said: Said) -> None:
    """Two of four are to leave, and have not left: three may fit."""
    site.start({1: 10, 2: 10, 3: 10, 4: 10})
    site.board.removed = 2
    site.loop()
    site.kill(1)
    site.run()
    assert said()[0].endswith(" Set NOW_LMS_WORKERS=3 or NOW_LMS_WORKER_MEMORY_MB=160.")


def test_one_worker_can_only_be_given_more(site: Site, said: Said) -> None:
    site.start({1: 400})
    site.loop(plan({"NOW_LMS_WORKERS": "1"}))
    site.kill(1)
    site.run()
    assert said()[0].endswith("plan 1 × 200 MB). Give it more memory: it runs one worker already.")


def test_kills_that_follow_each_other_are_said_together(site: Site, said: Said) -> None:
    site.start({1: 300, 2: 250, 3: 200, 4: 350})
    site.loop()
    for age in (1, 2, 3):
        site.kill(age)
        site.run()
    assert len(said()) == 1
    site.run(SAY_SECONDS)
    assert len(said()) == 2
    assert f" worker {site.pids[2]} was OOM-killed at 250 MB, and 1 more (" in said()[1]
    site.kill(4)
    site.run(SAY_SECONDS)
    assert f" worker {site.pids[4]} was OOM-killed at 350 MB (" in said()[2]
    assert site.board.read().stored["oom_kills"] == 4


def test_kill_of_another_process_of_the_group_is_one_line_and_blames_no_worker(
    site: Site, said: Said
) -> None:
    site.start({1: 300})
    site.loop()
    site.count = 2
    site.run()
    site.run(EXPIRE_SECONDS)
    assert said() == [
        "WARNING memory: 2 processes other than workers were OOM-killed (limit "
        "512 MB), probably a program of the app, a neighbour or the monitor. Keeping the "
        "workers."
    ]
    assert site.board.workers_oom_killed == 0
    site.kill(1, by_kernel=False)
    site.run()
    assert said()[-1].endswith("the kernel counted no OOM kill.")
    assert site.board.read().stored["oom_kills"] == 2
    site.count = 3
    site.run()
    site.run(EXPIRE_SECONDS)
    assert len(said()) == 2
    site.run(SAY_SECONDS)
    site.count = 4
    site.run()
    site.run(EXPIRE_SECONDS)
    assert said()[-1].startswith("WARNING memory: a process other than a worker")


def test_what_was_killed_before_the_start_is_nobody_of_ours(site: Site, said: Said) -> None:
    """A group keeps its count for as long as it is there."""
    site.count = 99
    site.start({1: 300})
    site.loop()
    site.run()
    assert site.board.read().stored["oom_kills"] == 0
    site.kill(1)
    site.run()
    assert len(said()) == 1
    assert site.board.read().stored["oom_kills"] == 1


def test_witness_that_is_started_again_goes_on_counting_and_says_nothing_twice(
    site: Site, said: Said
) -> None:
    """The monitor may be what was killed."""
    site.start({1: 300, 2: 310, 3: 100})
    site.loop()
    site.kill(1)
    site.run()
    site.loop()
    site.run()
    assert len(said()) == 1
    assert site.board.read().stored["oom_kills"] == 1
    site.kill(3)
    site.run()
    assert len(said()) == 2
    assert f" worker {site.pids[3]} was OOM-killed at 100 MB (" in said()[1]
    assert site.board.read().stored["oom_kills"] == 2


def test_kills_while_there_was_no_witness_are_those_of_the_kernel_all_the_same(
    site: Site, said: Said
) -> None:
    """One was killed before the witness died, two and something else while there was none."""
    site.start({1: 300, 2: 310, 3: 100, 4: 90})
    site.loop()
    site.kill(1)
    site.run()
    site.kill(2)
    site.kill(3)
    site.kill(4, by_kernel=False)
    site.loop()
    by_others, by_kernel = said()[1:]
    assert by_others.startswith("WARNING 1 worker crashed or got killed by a signal")
    assert f" worker {site.pids[2]} was OOM-killed at 310 MB, and 1 more (" in by_kernel
    now = site.board.read()
    assert (now.stored["oom_kills"], now.workers_oom_killed) == (3, 3)


def test_kill_that_only_the_witness_before_has_seen_is_still_to_be_explained(
    site: Site, said: Said
) -> None:
    """It died before the master knew whom the kernel had killed."""
    site.start({1: 300, 2: 300})
    site.loop()
    site.count = 1
    site.run()
    site.loop()
    site.run()
    assert said() == []
    site.kill(1, by_kernel=False)
    site.run()
    (line,) = said()
    assert line.startswith(f"ERROR worker {site.pids[1]} was OOM-killed at 300 MB (")
    assert site.board.read().stored["oom_kills"] == 1


def test_kill_of_another_process_while_there_was_no_witness_is_no_workers(
    site: Site, said: Said
) -> None:
    """It may have been the monitor itself."""
    site.start({1: 300})
    site.loop()
    site.count = 1
    site.loop()
    site.run(EXPIRE_SECONDS)
    site.loop()
    site.run(EXPIRE_SECONDS)
    (line,) = said()
    assert line.startswith("WARNING memory: a process other than a worker")
    assert (site.board.read().stored["oom_kills"], site.board.workers_oom_killed) == (1, 0)


def test_it_looks_often_while_memory_is_short_and_shortly_after(site: Site) -> None:
    site.loop()
    assert site.oom.interval == INTERVAL_SECONDS
    site.is_short = True
    site.run()
    assert site.oom.interval == OFTEN_SECONDS
    site.is_short = False
    site.run()
    assert site.oom.interval == OFTEN_SECONDS
    site.run(LATELY_SECONDS)
    assert site.oom.interval == INTERVAL_SECONDS


def test_line_is_of_the_workers_that_the_limits_allow_now(site: Site, said: Said) -> None:
    """Planned was one: a larger limit has made three of it."""
    site.start({1: 10, 2: 10, 3: 10})
    site.loop(plan({"NOW_LMS_WORKERS": "1"}))
    site.board.for_limits, site.board.available_mb = 2, 600
    site.kill(1)
    site.run()
    assert said()[0].endswith(
        "plan 3 × 200 MB). Set NOW_LMS_WORKERS=2 or NOW_LMS_WORKER_MEMORY_MB=300."
    )


def test_worker_that_ends_by_its_own_will_is_not_talked_of(site: Site, said: Said) -> None:
    site.start({1: 300, 2: 300})
    site.loop()
    row = site.board.record_of(1)
    assert row is not None
    row.leave()
    site.kill(1, by_kernel=False)
    site.run()
    assert said() == []


# The end of the server


def test_master_that_the_kernel_killed_is_named_at_the_end(site: Site, said: Said) -> None:
    site.start({1: 300})
    site.loop()
    site.count = 1
    site.oom.end(site.board.read())
    (line,) = said()
    assert line.startswith("ERROR the master was OOM-killed (limit 512 MB, plan 4 × 200 MB). ")


def test_server_of_one_process_that_the_kernel_killed_is_named_at_the_end(
    site: Site, said: Said
) -> None:
    site.start({1: 500})
    site.loop(plan(server="waitress"))
    site.count = 1
    site.oom.end(site.board.read())
    assert said() == [
        f"ERROR server {site.pids[1]} was OOM-killed at 500 MB (limit 512 MB, plan 1 × 200 MB). "
        "Give it more memory, or set NOW_LMS_MEMORY_GUARD=exit."
    ]


@pytest.mark.parametrize("count", [0, None])
def test_nothing_is_said_at_the_end_of_a_server_that_the_kernel_did_not_kill(
    site: Site, said: Said, count: int | None
) -> None:
    site.start({1: 500})
    site.count = count
    site.loop()
    site.oom.end(site.board.read())
    assert said() == []
