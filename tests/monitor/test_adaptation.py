"""The task that follows the load: what it sees, and that what is decided is done."""

from __future__ import annotations

import pytest

from flask_workersize import SizingSettings, compute_plan
from flask_workersize.monitor import adapting
from flask_workersize.monitor.adaptation import AdaptingTask
from flask_workersize.monitor.adapting import AdaptingRules, Sample
from flask_workersize.monitor.limits import LimitFollower
from flask_workersize.monitor.scaling import Scaler
from flask_workersize.resources.gauge import MemoryState
from flask_workersize.resources.host import CpuTimes
from flask_workersize.resources.processes import ProcessMemory, ResidentPeak
from flask_workersize.runtime.layout import Slot
from flask_workersize.runtime.queue_times import note_wait
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import GuardState, State
from flask_workersize.runtime.worker_record import WorkerRecord
from flask_workersize.sizing.adaptive import adaptive_bounds
from tests.plain import MB, resources

SECOND = 1_000_000_000


class Counting(Scaler):
    """Counts how often it was asked."""

    asked = 0

    def scale(self) -> None:
        self.asked += 1


class Site:
    """A gunicorn of two workers on two CPUs, whose requests the test counts itself."""

    def __init__(self, used_mb: int = 100, idle: float = 1.5) -> None:
        settings = SizingSettings(sizing="adaptive", wsgi_server="gunicorn")
        plan = compute_plan(settings, resources(2, memory_mb=500))
        bounds = adaptive_bounds(settings, plan)
        assert bounds is not None
        self.board = Scoreboard(
            plan.workers, plan.threads, bounds.workers.most, bounds.threads.most
        )
        self.board.state, self.board.guard = State.SERVING, GuardState.OK
        self.board.followed_cpus = 2000
        self.now, self.used_mb, self.idle, self.stolen = 1000.0, used_mb, idle, 0.0
        self._machine = CpuTimes()
        self.cpu: dict[int, float] = {}
        self.rows: list[WorkerRecord] = []
        self.scaler = Counting(self.board, 1)
        self.task = AdaptingTask(
            self.board,
            bounds,
            None,
            self.scaler,
            lambda: MemoryState(500 * MB, self.used_mb * MB, is_group=True),
            (lambda pid: self.cpu.get(pid, 0.0), lambda: self._machine),
        )
        for age in range(1, plan.workers + 1):
            self.add(age)

    def add(self, age: int, own_mb: int = 20) -> None:
        row = self.board.allocate(age)
        assert row is not None
        row.enter()
        row.set_ready()
        number = len(self.rows)
        self.rows.append(row)
        memory = ProcessMemory(60 * MB, 40 * MB, own_mb * MB)
        self.board.note_memory(number, memory, ResidentPeak(), 100, True)

    def second(
        self, requests: int, cpu: float, wait: float, queued: float, delay: float = 0.0
    ) -> None:
        """Let a second pass in which each worker serves so many requests.

        Each takes ``cpu`` and ``wait`` seconds, and had waited ``queued`` seconds before, ``delay``
        for a CPU.
        """
        for row in self.rows:
            cells, slot = self.board.cells, row.slots[0]
            cells[slot + Slot.SERVED] += requests
            cells[slot + Slot.BUSY] += int(requests * (cpu + wait + delay) * SECOND)
            cells[slot + Slot.CPU] += int(requests * cpu * SECOND)
            cells[slot + Slot.CPU_WAIT] += int(requests * delay * SECOND)
            for _ in range(requests):
                note_wait(row.queue.cells, row.queue.starts[0], queued, int(self.now * SECOND))
        pid = self.board.read().workers[0].pid
        self.cpu[pid] = self.cpu.get(pid, 0.0) + requests * cpu
        before, computed = self._machine, requests * cpu * len(self.rows)
        self._machine = CpuTimes(
            before.computing + computed, before.idle + self.idle, before.stolen + self.stolen
        )
        self.now += 1
        self.task.run(self.now, self.board.read)

    @property
    def size(self) -> tuple[int, int]:
        return self.board.wanted, self.board.threads


def test_waiting_app_gets_the_threads_that_it_needs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    site = Site()
    assert site.size == (2, 1)
    for _ in range(6):
        site.second(19, cpu=0.001, wait=0.05, queued=0.2)
    assert site.size[1] > 16
    assert site.scaler.asked > 0
    line = caplog.messages[0]
    assert line.startswith("size: 2 × 1 to 2 × ")
    assert "requests wait" in line
    # It is kept for the report, too.
    assert site.board.events.read()[0].text == line.removesuffix(".")


def test_without_a_queue_nothing_moves() -> None:
    site = Site()
    for _ in range(10):
        site.second(10, cpu=0.001, wait=0.05, queued=0.0)
    assert site.size == (2, 1)


def test_step_that_memory_does_not_allow_is_not_taken() -> None:
    site = Site(used_mb=349)
    for _ in range(10):
        site.second(19, cpu=0.001, wait=0.05, queued=0.2)
    assert site.size[0] == 2
    assert site.size[1] <= 2


def test_while_the_guard_acts_nothing_moves() -> None:
    site = Site()
    site.board.guard, site.board.removed = GuardState.REDUCED, 1
    for _ in range(10):
        site.second(19, cpu=0.001, wait=0.05, queued=0.2)
    assert site.size == (1, 1)
    assert site.scaler.asked == 0


def test_neighbours_that_compute_do_not_take_threads_from_an_app_that_waits() -> None:
    """No CPU is idle, but whoever wants to compute gets one soon."""
    site = Site(idle=0.0)
    for _ in range(4):
        site.second(18, cpu=0.001, wait=0.05, delay=0.004, queued=0.2)
    assert site.size[1] > 8


def test_workers_for_the_load_and_those_for_the_limits_add_up() -> None:
    site = Site()
    site.board.for_load = 2
    site.board.for_limits = -1
    assert site.board.wanted == 3


def test_changed_limit_takes_back_what_the_load_had_asked_for() -> None:
    """It is found anew, as far as the new limit allows it."""
    site = Site()
    settings = SizingSettings(sizing="adaptive", wsgi_server="gunicorn")
    plan = compute_plan(settings, resources(2, memory_mb=500))
    site.board.followed_memory, site.board.for_load = 500 * MB, 3
    small = resources(2, memory_mb=210, memory_limit=210 * MB)
    follower = LimitFollower(site.board, settings, plan, lambda: (small, 0), site.scaler)
    follower.run(site.now, site.board.read)
    assert (site.board.for_limits, site.board.for_load, site.board.wanted) == (-1, 0, 1)


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Return what the rule gets from here on; it decides nothing."""
    seen: list[Sample] = []

    def noted(
        rules: AdaptingRules, state: adapting.State, sample: Sample
    ) -> tuple[adapting.State, None]:
        seen.append(sample)
        return state, None

    monkeypatch.setattr("flask_workersize.monitor.adaptation.adapt", noted)
    return seen


def test_time_that_a_hypervisor_steals_is_no_waiting(samples: list[Sample]) -> None:
    """19 requests of 10 ms in each of two workers, which as much again was stolen from."""
    site = Site()
    site.stolen = 2 * 19 * 0.010
    for _ in range(2):
        site.second(19, cpu=0.010, wait=0.010, queued=0.2)
    assert samples[0].alone.wait_seconds == pytest.approx(0)
    site.stolen = 0
    site.second(19, cpu=0.010, wait=0.010, queued=0.2)
    assert samples[1].alone.wait_seconds == pytest.approx(2 * 19 * 0.010)


@pytest.mark.parametrize(("delay", "is_taken"), [(0.0, True), (0.02, False)])
def test_requests_that_ran_together_tell_what_an_app_waits_if_cpus_are_free(
    samples: list[Sample], delay: float, is_taken: bool
) -> None:
    """A thread that has no CPU keeps the GIL from others, which looks like waiting."""
    site = Site()
    for _ in range(2):
        site.second(10, cpu=0.010, wait=0.090, queued=0, delay=delay)
    assert (samples[0].alone.count == 20) is is_taken
