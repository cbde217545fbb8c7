"""A limit that changes while the app is served: who follows it, how far, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from flask_workersize import Resources, SizingPlan, SizingSettings, compute_plan
from flask_workersize.monitor import limits
from flask_workersize.monitor.limits import (
    INTERVAL_SECONDS,
    SETTLE_SECONDS,
    LimitFollower,
    limits_of,
    with_workers_memory,
)
from flask_workersize.monitor.loop import Look
from flask_workersize.monitor.scaling import Scaler
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import Snapshot, State, WorkerMemory, WorkerStats
from flask_workersize.sizing.plan import available_for
from flask_workersize.sizing.validators import ServerName
from tests.health.snapshots import row, snapshot
from tests.plain import MB, load, resources
from tests.sizing.profiles import figure, profile

GB = 1024
"""In MB: a worker is taken to need as much here, far more than this process has."""

Said = Callable[[], list[str]]


class Notebook(Scaler):
    """A hand that writes down how many workers more or fewer are wanted."""

    def __init__(self) -> None:
        self.board = Scoreboard(1, 1)
        self.adjusted: list[tuple[str, int]] = []

    def scale(self) -> None:
        self.adjusted.append(("limits", self.board.for_limits))

    def recycle(self, row: WorkerStats) -> bool:
        raise AssertionError("no worker is recycled for a limit")

    def reconcile(self, look: Look) -> None:
        raise AssertionError("that is for who looks more often")

    def end_server(self) -> None:
        raise AssertionError("no server ends for a limit")


def follower(
    settings: SizingSettings,
    plan: SizingPlan,
    detect: Callable[[], tuple[Resources, int]],
    scaler: Notebook,
    known: Resources,
) -> LimitFollower:
    """Return a follower that knows the limits of a machine."""
    board = scaler.board
    board.planned = plan.workers
    board.followed_memory, board.followed_cpus = limits_of(known)
    return LimitFollower(board, settings, plan, detect, scaler)


class Site:
    """A machine whose limits change, and who follows them, at a time of the test's own.

    :param environ: what the operator asked for
    :param server: which server runs
    """

    def __init__(self, server: ServerName = "gunicorn", **environ: str) -> None:
        self.scaler = Notebook()
        settings = self.settings = load({"NOW_LMS_WORKER_MEMORY_MB": str(GB), **environ})
        self.machine = machine()
        plan = self.plan = compute_plan(settings, self.machine, server)
        self._follower = follower(
            settings, plan, lambda: (self.machine, 0), self.scaler, self.machine
        )
        self.now = 1000.0
        self.run()

    def restart(self) -> None:
        """Have another follower, in another monitor."""
        self._follower = LimitFollower(
            self.scaler.board, self.settings, self.plan, lambda: (self.machine, 0), self.scaler
        )

    def run(self, after: float = INTERVAL_SECONDS, seen: Snapshot | None = None) -> None:
        """Let it look, after so much time."""
        self.now += after
        self._follower.run(self.now, lambda: seen or snapshot())
        self._follower.end(snapshot())

    def change(self, **limits: float) -> None:
        """Have other limits, and let it look."""
        self.machine = machine(**limits)
        self.run()


def machine(cpus: float = 8, limit: float = 4, available: float = 3.5) -> Resources:
    """Return a machine with so many CPUs, and so many GB."""
    return resources(cpus, available * GB, memory_limit=int(limit * GB * MB))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """Return what was said, each line with its level."""
    caplog.set_level("INFO", "flask_workersize")
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_nothing_is_done_while_the_limits_are_the_same(said: Said) -> None:
    """What is available changes all the time."""
    site = Site()
    for available in (3, 1, 0, 4):
        site.change(available=available)
    assert site.scaler.adjusted == []
    assert said() == []


def test_more_memory_means_more_workers_with_one_line(said: Said) -> None:
    site = Site()
    site.change(limit=8, available=6.5)
    assert site.scaler.adjusted == [("limits", 3)]
    assert said() == [
        "INFO memory limit changed from 4096 MB to 8192 MB: scaling from 3 to 6 workers.",
    ]
    (event,) = site.scaler.board.events.read()
    assert event.text == "memory limit changed from 4096 MB to 8192 MB: scaling from 3 to 6 workers"


def test_less_memory_means_fewer_workers(said: Said) -> None:
    site = Site()
    site.change(limit=2, available=1.5)
    assert site.scaler.adjusted == [("limits", -2)]
    assert said() == [
        "INFO memory limit changed from 4096 MB to 2048 MB: scaling from 3 to 1 worker."
    ]


def test_number_of_cpus_is_followed_too(said: Said) -> None:
    site = Site()
    site.change(cpus=0.5)
    assert site.scaler.adjusted == [("limits", -1)]
    assert said() == ["INFO CPUs changed from 8 to 0.5: scaling from 3 to 2 workers."]


def test_both_at_once_are_one_line(said: Said) -> None:
    site = Site()
    site.change(cpus=2, limit=16, available=12.5)
    assert site.scaler.adjusted == [("limits", 2)]
    assert said() == [
        "INFO memory limit changed from 4096 MB to 16384 MB, CPUs changed from 8 to 2: scaling "
        "from 3 to 5 workers."
    ]


def test_number_is_always_told_from_the_first_plan() -> None:
    """Each change is one of the number that was planned, not one more step."""
    site = Site()
    for limit, available in [(8, 6.5), (6, 5.5), (2, 1.5), (4, 3.5)]:
        site.change(limit=limit, available=available)
    assert site.scaler.adjusted == [("limits", count) for count in (3, 2, -2, 0)]


def test_limit_that_changes_nothing_is_not_talked_of(said: Said) -> None:
    site = Site()
    site.change(limit=5)
    site.change(cpus=4, limit=5)
    assert site.scaler.adjusted == []
    assert said() == []


def test_workers_that_were_asked_for_do_not_follow(said: Said) -> None:
    site = Site(NOW_LMS_WORKERS="3")
    site.change(cpus=1, limit=1, available=0.5)
    site.change(cpus=64, limit=64, available=64)
    assert site.scaler.adjusted == []
    assert said() == []


def test_bounds_that_were_asked_for_hold() -> None:
    site = Site(NOW_LMS_MIN_WORKERS="2", NOW_LMS_MAX_WORKERS="5")
    site.change(limit=64, available=64)
    site.change(limit=1, available=0.5)
    assert site.scaler.adjusted == [("limits", 2), ("limits", -1)]


def test_threads_of_waitress_need_a_restart_and_a_line_says_so(said: Said) -> None:
    site = Site("waitress")
    site.change(limit=8, available=6.5)
    assert site.scaler.adjusted == []
    assert said() == [
        "WARNING memory limit changed from 4096 MB to 8192 MB: restart to go from 3 to 6 threads."
    ]


@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPING])
def test_server_that_drains_or_stops_does_not_follow(state: State) -> None:
    site = Site()
    site.machine = machine(limit=8, available=6.5)
    site.run(seen=snapshot(state=state))
    assert site.scaler.adjusted == []


def test_what_something_held_for_a_moment_does_not_count_for_good(said: Said) -> None:
    """More workers are planned once it is available; less of it changes nothing."""
    site = Site()
    site.change(limit=8, available=4.5)
    site.change(limit=8, available=6.5)
    site.change(limit=8, available=5.5)
    site.run(SETTLE_SECONDS)
    site.change(limit=8, available=7.5)
    assert site.scaler.adjusted == [("limits", 1), ("limits", 3)]
    assert said()[-1] == "INFO more memory is available: scaling from 4 to 6 workers."


def test_what_the_guard_has_removed_is_not_taken_off_twice() -> None:
    """Of three the guard has removed one: for two there is room then, and two stay."""
    site = Site()
    site.scaler.board.removed = 1
    site.change(limit=3, available=2.5)
    assert (site.scaler.board.wanted, site.scaler.board.removed) == (2, 0)
    site.scaler.board.removed = 1
    site.change(limit=8, available=6.5)
    assert (site.scaler.board.wanted, site.scaler.board.removed) == (5, 1)


def test_monitor_that_is_started_again_goes_on_from_what_was_followed() -> None:
    site = Site()
    site.change(limit=8, available=6.5)
    site.machine = machine(limit=8, available=1.5)
    site.restart()
    site.run(1000.0)
    assert site.scaler.adjusted == [("limits", 3)]
    assert site.scaler.board.wanted == 6
    site.change(limit=4, available=3.5)
    assert site.scaler.adjusted[1:] == [("limits", 0)]


def test_monitor_that_is_started_again_still_plans_more_once_it_is_available(said: Said) -> None:
    """What something held for a moment does not count for good, whoever looks."""
    site = Site()
    site.change(limit=8, available=4.5)
    site.restart()
    site.change(limit=8, available=6.5)
    assert site.scaler.adjusted == [("limits", 1), ("limits", 3)]
    site.restart()
    site.run(SETTLE_SECONDS)
    site.change(limit=8, available=7.5)
    assert len(site.scaler.adjusted) == 2


def test_threads_are_compared_with_those_that_run(said: Said) -> None:
    """The line has not changed them: once the limit is back, nothing is to be done."""
    site = Site("waitress")
    site.change(limit=8, available=6.5)
    site.change(limit=4, available=3.5)
    site.change(limit=6, available=5.5)
    assert [line.rpartition(": ")[2] for line in said()] == [
        "restart to go from 3 to 6 threads.",
        "restart to go from 3 to 5 threads.",
    ]


# What the workers hold


def holding(*own: int | None, rss: int = 0) -> Snapshot:
    """Return workers with so many GB of their own each; ``None`` where the system does not tell."""
    samples = [
        WorkerMemory(max(rss, size or 0) * GB * MB, None, (size or 0) * GB * MB) for size in own
    ]
    return snapshot(*(row(memory=sample) for sample in samples))


def test_what_the_workers_hold_of_their_own_is_available_to_them() -> None:
    """What they share with the launcher stays used."""
    site = Site()
    site.machine = machine(limit=8, available=1.5)
    site.run(seen=holding(2, 1, 1, rss=4))
    assert site.scaler.adjusted == [("limits", 2)]


def test_what_is_not_known_to_be_a_workers_own_is_not_counted() -> None:
    """Resident memory would count what they share once for each."""
    site = Site()
    site.machine = machine(limit=8, available=1.5)
    site.run(seen=holding(None, None, rss=2))
    assert site.scaler.adjusted == [("limits", -2)]


def test_what_the_monitor_holds_is_available_too() -> None:
    """At a start it was not there yet."""
    before = machine(available=1)
    after = with_workers_memory(before, snapshot())
    assert 0 < after.memory_available - before.memory_available < GB * MB / 2


def test_what_a_measured_plan_takes_off_once_is_not_counted_as_used_before() -> None:
    """120 MB are shared, and 5 workers have 17 MB each: they fit into 220 MB as before."""
    scaler = Notebook()
    nothing_spare = load({"NOW_LMS_MEMORY_HEADROOM_PERCENT": "0"})
    settings = nothing_spare.measured_by(profile(shared_mb=figure(120), peak_mb=figure(17)))
    before = resources(2, 500, memory_limit=512 * MB)
    used = 120 + 5 * 17
    now = resources(2, 220 - used, memory_limit=220 * MB)
    plan = compute_plan(settings, before, "gunicorn")
    assert plan.workers == 5
    follower(settings, plan, lambda: (now, 120 * MB), scaler, before).run(
        9.0, lambda: snapshot(*[row(memory=WorkerMemory(137 * MB, 50 * MB, 17 * MB))] * 5)
    )
    assert scaler.adjusted == []


def test_only_what_the_launcher_holds_of_what_is_taken_off_once_counts_as_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The profile says 300 MB, 50 of them are held: there is no more room than at the start."""
    monkeypatch.setattr(limits, "private_memory", lambda _: 0)
    scaler = Notebook()
    settings = load({"NOW_LMS_MEMORY_HEADROOM_PERCENT": "0"}).measured_by(
        profile(shared_mb=figure(300), peak_mb=figure(17))
    )
    before = resources(8, 462, memory_limit=2048 * MB)
    plan = compute_plan(settings, available_for(settings, before, 50 * MB), "gunicorn")
    assert plan.workers == 12
    now = resources(7, 462 - 12 * 17, memory_limit=2048 * MB)
    follower(settings, plan, lambda: (now, 50 * MB), scaler, before).run(
        9.0, lambda: snapshot(*[row(memory=WorkerMemory(137 * MB, 50 * MB, 17 * MB))] * 12)
    )
    assert scaler.adjusted == []


def test_no_more_is_available_than_the_limit() -> None:
    before = machine(limit=4, available=3)
    after = with_workers_memory(before, holding(2, 2))
    assert after == replace(before, memory_available=4 * GB * MB)


def test_it_waits_until_every_worker_was_measured() -> None:
    """Until then what they hold would count as used by others."""
    site = Site()
    site.machine = machine(limit=8, available=1.5)
    known, unknown = row(memory=WorkerMemory(4 * GB * MB, None, 4 * GB * MB)), row(memory=None)
    site.run(seen=snapshot(known, unknown))
    assert site.scaler.adjusted == []
    site.run(seen=snapshot(known, unknown._replace(is_ready=False)))
    assert site.scaler.adjusted == [("limits", 2)]
