"""What is learnt from traffic: when it is enough, what counts, and what is written."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flask_workersize.health.measured import MeasuredReport
from flask_workersize.health.report import CapacityReport
from flask_workersize.monitor import learning, tasks
from flask_workersize.monitor.guard import WARM_REQUESTS
from flask_workersize.monitor.learning import (
    ENOUGH_REQUESTS,
    SAVE_SECONDS,
    SHARED_SECONDS,
    LearningTask,
    ProfileWriter,
    SharedMemory,
    Totals,
    TrafficMeter,
    shared_memory,
)
from flask_workersize.resources.processes import ProcessMemory
from flask_workersize.runtime.deployment import Deployment
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import State, TrafficStats, WorkerMemory
from flask_workersize.sizing.adaptive import adaptive_bounds
from flask_workersize.sizing.plan import compute_plan
from flask_workersize.sizing.profile import Estimate, SizingProfile
from flask_workersize.sizing.profile_location import FILE_NAME, ProfileLocation
from tests.health.snapshots import live, row, snapshot
from tests.plain import MB, load, plan, resources
from tests.sizing.profiles import profile

LEARNT = TrafficStats(1000, 5_000_000, 45_000_000, 60 * MB, 30 * MB)


class Traffic:
    """A server that is watched, second by second.

    :param cpus: CPUs that it has
    """

    def __init__(self, cpus: float = 2, server: Any = "gunicorn", **others: Any) -> None:
        self.board = Scoreboard(2, 1)
        self.task = LearningTask(self.board, plan(server=server), cpus, os.getpid(), **others)
        self.meter = self.task.meter
        self.now = 0.0
        self.served, self.busy, self.cpu, self.no_cpu = 0, 0.0, 0.0, 0.0
        self.own = [20, 20]
        self.ledger: dict[int, tuple[int, int | None]] = {}
        self.state = State.SERVING

    def second(
        self, requests: int, cpu_ms: float = 5, wait_ms: float = 45, no_cpu_ms: float = 0
    ) -> None:
        """Let a second pass, with so many requests that cost so much."""
        self.no_cpu += requests * no_cpu_ms / 1000
        self.served += requests
        self.cpu += requests * cpu_ms / 1000
        self.busy += requests * (cpu_ms + wait_ms + no_cpu_ms) / 1000
        self.now += 1
        self.task.run(self.now, self.seen)

    def memory(self, own: int, first: int, warm: int | None, served: int) -> WorkerMemory:
        """Return what the ledger has of a worker; none of it is private if that is not told."""
        size = own * MB
        return WorkerMemory(size, size, size, first if own else None, warm, size, served)

    def seen(self) -> Any:
        """Return what the scoreboard says now."""
        served = self.served // 2
        for age, own in enumerate(self.own, 1):
            first, warm = self.ledger.get(age, (own * MB, None))
            if warm is None and served >= WARM_REQUESTS:
                warm = own * MB
            self.ledger[age] = first, warm
        rows = [
            row(age=age, served=served, memory=self.memory(own, *self.ledger[age], served))
            for age, own in enumerate(self.own, 1)
        ]
        return snapshot(
            *rows,
            state=self.state,
            served=self.served,
            busy_seconds=self.busy,
            cpu_seconds=self.cpu,
            cpu_wait_seconds=self.no_cpu,
        )


def test_time_that_a_hypervisor_steals_is_no_waiting() -> None:
    """It looks like waiting for a database: neither CPU time nor waiting for a CPU."""
    meters = {stolen: TrafficMeter(2, lambda stolen=stolen: stolen) for stolen in (0.0, 1.0)}  # type: ignore[misc]
    for meter in meters.values():
        meter.observe(0, Totals(0, 0, 0), {})
        meter.observe(1, Totals(10, 10 * 15_000_000, 10 * 5_000_000), {})
    waits = {stolen: list(meter.wait_ms) for stolen, meter in meters.items()}
    assert waits == {0.0: [pytest.approx(10)], 1.0: [pytest.approx(5)]}


def test_nothing_is_told_before_there_is_enough() -> None:
    traffic = Traffic()
    traffic.second(0)
    for _ in range(10):
        traffic.second(ENOUGH_REQUESTS // 10 - 1)
        assert traffic.board.read().traffic is None
    for _ in range(2):
        traffic.second(10)
    assert traffic.board.read().traffic is not None


def test_requests_that_were_served_before_count_for_nothing() -> None:
    """A monitor that takes over does not know what they cost."""
    traffic = Traffic()
    traffic.served = 100_000
    traffic.second(0)
    traffic.second(10)
    assert traffic.meter.stats() is None


def test_figures_are_means_and_the_peak_of_a_warm_worker() -> None:
    traffic = Traffic()
    traffic.second(0)
    for number in range(30):
        traffic.own = [20, 33 if number == 20 else 22]
        traffic.second(10)
    learnt = traffic.board.read().traffic
    assert learnt is not None
    assert learnt.requests == 300
    assert (learnt.cpu_ns / 1e6, learnt.wait_ns / 1e6) == pytest.approx((5, 45), rel=0.01)
    # The sample of a worker has the peak that the scoreboard keeps.
    assert learnt.peak_bytes == 22 * MB
    assert learnt.shared_bytes > MB


def test_waiting_is_learnt_while_there_is_cpu_time_to_be_had() -> None:
    """Under full load requests also wait for each other: that asks for no more threads."""
    traffic = Traffic(cpus=1)
    traffic.second(0)
    for _ in range(10):
        traffic.second(10)
    for _ in range(10):
        traffic.second(190, wait_ms=500)
    learnt = traffic.meter.stats()
    assert learnt is not None
    assert learnt.wait_ns / 1e6 == pytest.approx(45, rel=0.01)
    assert learnt.requests == 2000


def test_time_without_a_cpu_is_no_waiting() -> None:
    """On a busy machine an app that only computes needs no threads."""
    traffic = Traffic(cpus=2)
    traffic.second(0)
    for _ in range(30):
        traffic.second(10, cpu_ms=5, wait_ms=1, no_cpu_ms=40)
    learnt = traffic.meter.stats()
    assert learnt is not None
    assert (learnt.cpu_ns / 1e6, learnt.wait_ns / 1e6) == pytest.approx((5, 1), rel=0.01)


def test_server_that_is_never_calm_tells_nothing() -> None:
    traffic = Traffic(cpus=1)
    for _ in range(20):
        traffic.second(190)
    assert traffic.meter.stats() is None


def test_workers_that_are_not_warm_are_no_measure() -> None:
    traffic = Traffic()
    traffic.second(0)
    traffic.second(40)
    assert traffic.meter.peaks_mb() == []
    traffic.second(20)
    assert traffic.meter.peaks_mb() == [20, 20]


def test_system_that_does_not_tell_memory_gives_no_figures() -> None:
    traffic = Traffic()
    traffic.own = [0, 0]
    for _ in range(40):
        traffic.second(10)
    assert traffic.meter.stats() is None


def test_stop_is_no_traffic() -> None:
    traffic = Traffic()
    for _ in range(40):
        traffic.second(10)
    traffic.state = State.STOPPING
    before = traffic.meter.stats()
    traffic.second(1000, wait_ms=9000)
    assert traffic.meter.stats() == before


def test_what_is_kept_is_bounded() -> None:
    traffic = Traffic()
    for number in range(1000):
        (memory, *_) = [item.memory for item in traffic.seen().workers if item.memory]
        traffic.now += 1
        traffic.meter.observe(traffic.now, Totals(number, 0, 0), {number: memory})
    assert len(traffic.meter.workers) == 200


def test_meter_needs_no_scoreboard_and_no_cpus_where_requests_come_one_after_the_other() -> None:
    """As while measuring: then whatever was not computed was waited."""
    traffic, meter = Traffic(cpus=0.01), TrafficMeter()

    def observe(now: float) -> None:
        seen = traffic.seen()
        totals = Totals(*map(seen.total, Totals._fields))
        meter.observe(now, totals, {row.age: row.memory for row in seen.ready if row.memory})

    observe(0.0)
    for number in range(1, 31):
        traffic.second(10)
        observe(number / 100)
    meter.shared_mb.append(60)
    assert traffic.meter.stats() is None
    stats = meter.stats()
    assert stats is not None
    assert (stats.cpu_ns / 1e6, stats.wait_ns / 1e6) == pytest.approx((5, 45), rel=0.01)
    made = meter.profile("measure", "lms", "gunicorn", True, thread_mb=[1.0, 2.0, 3.0])
    assert (made.made_by, made.requests, made.thread_mb.value) == ("measure", 300, 2)


# The profile


def test_profile_is_written_as_soon_as_there_is_enough_then_now_and_then_and_at_the_end() -> None:
    written: list[TrafficMeter] = []
    traffic = Traffic(save=written.append)
    traffic.task.end(traffic.seen())
    assert written == []
    counts = []
    for _ in range(2 * int(SAVE_SECONDS)):
        traffic.second(10)
        counts.append(len(written))
    assert counts.index(2) - counts.index(1) == SAVE_SECONDS
    assert counts[-1] == 2
    traffic.task.end(traffic.seen())
    assert len(written) == 3


def test_profile_has_what_was_learnt(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    traffic = Traffic(save=ProfileWriter(path, "lms", "gunicorn", preload=True))
    traffic.second(0)
    for number in range(60):
        traffic.own = [20 + number, 20]
        traffic.second(10)
    traffic.task.end(traffic.seen())
    made = SizingProfile.load(path)
    assert (made.app, made.made_by, made.preload) == ("lms", "learn", True)
    assert made.server.startswith("gunicorn ")
    # The worker that grows counts as it was when it was warm.
    assert (made.peak_mb.low, made.peak_mb.high) == (20, 24)
    assert (made.boot_mb.low, made.boot_mb.high) == (20, 20)
    assert made.cpu_ms.value == pytest.approx(5)
    assert made.wait_ms.value == pytest.approx(45)
    assert made.grows
    assert made.growth_mb.value == pytest.approx(200, rel=0.01)


def test_profile_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "profile.json"
    traffic = Traffic(save=ProfileWriter(path, "lms", "gunicorn", preload=True))
    with caplog.at_level(logging.WARNING, "flask_workersize"):
        for _ in range(40):
            traffic.second(10)
        traffic.task.end(traffic.seen())
    (told,) = (record.getMessage() for record in caplog.records)
    assert "cannot write the profile to" in told


def test_threads_that_an_adaptive_size_found_are_in_the_profile(tmp_path: Path) -> None:
    """Also in one that knows more of the app than this run does."""
    path, found = tmp_path / "profile.json", 8
    save = ProfileWriter(path, "lms", "gunicorn", preload=True, found_threads=lambda: found)
    traffic = Traffic(save=save)
    for _ in range(40):
        traffic.second(10)
    traffic.task.end(traffic.seen())
    first = SizingProfile.load(path)
    assert (first.found_threads, first.requests) == (8, 390)
    found = 11
    again = Traffic(save=save)
    for _ in range(25):
        again.second(10)
    again.task.end(again.seen())
    assert SizingProfile.load(path) == first.model_copy(update={"found_threads": 11})
    # Another run that has found nothing leaves it.
    again.task._save = ProfileWriter(path, "lms", "gunicorn", preload=True)
    again.task.end(again.seen())
    assert SizingProfile.load(path).found_threads == 11


@pytest.mark.parametrize(("asked", "found"), [(None, 1), (2000, None)])
def test_threads_that_are_set_were_not_found(
    tmp_path: Path, asked: int | None, found: int | None
) -> None:
    """A profile with so many could not even be read again."""
    asks = {"wsgi_server": "gunicorn", "sizing": "adaptive", "sizing_profile": "learn"}
    settings = load(options={**asks, "threads": asked})
    planned = compute_plan(settings, resources())
    deployment = Deployment(
        settings,
        resources(),
        planned,
        ProfileLocation("lms", str(tmp_path)),
        bounds=adaptive_bounds(settings, planned),
    )
    writer = tasks._writer(deployment, deployment.make_scoreboard())
    assert writer is not None
    traffic = Traffic(save=writer)
    for _ in range(40):
        traffic.second(10)
    traffic.task.end(traffic.seen())
    assert SizingProfile.load(tmp_path / FILE_NAME).found_threads == found


def test_profile_is_not_learnt_through_a_link_out_of_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who may write into the folder would have any file of the monitor's user replaced."""
    folder, victim = tmp_path / "instance\nERROR forged", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    path = folder / "profile.json"
    path.symlink_to(victim)
    traffic = Traffic(save=ProfileWriter(path, "lms", "gunicorn", preload=True))
    with caplog.at_level(logging.WARNING, "flask_workersize"):
        for _ in range(40):
            traffic.second(10)
        traffic.task.end(traffic.seen())
    assert victim.read_text() == "mine"
    (told,) = (record.getMessage() for record in caplog.records)
    assert "a link leads out of " in told
    assert told.isprintable()
    # What is in its place otherwise is replaced.
    path.unlink()
    os.mkfifo(path)
    traffic.task.end(traffic.seen())
    assert SizingProfile.load(path).made_by == "learn"


def test_server_of_one_process_is_calm_while_half_of_one_cpu_is_used() -> None:
    """It computes on one CPU at a time: above that, threads wait for each other."""
    traffic = Traffic(cpus=4, server="waitress")
    one = traffic.seen
    traffic.seen = lambda: replace(one(), workers=one().workers[:1])  # type: ignore[method-assign]
    for _ in range(20):
        traffic.second(190)
    assert traffic.meter.stats() is None


def test_leak_does_not_become_the_size_of_a_worker() -> None:
    """It ends where the guard recycles: each start would plan fewer and larger ones."""
    traffic = Traffic()
    traffic.second(0)
    for number in range(130):
        traffic.own = [20 + number, 20]
        traffic.second(30)
    learnt = traffic.meter.stats()
    assert learnt is not None
    assert learnt.peak_bytes < 30 * MB
    made = traffic.meter.profile("learn", "lms", "gunicorn", True)
    assert made.peak_mb.high < 30


@pytest.mark.parametrize(
    ("requests", "peak", "server", "is_kept"),
    [
        (10_000, 90, "gunicorn 27.0.1", True),
        (10_000, 10, "gunicorn 27.0.1", False),
        (100, 90, "gunicorn 27.0.1", False),
        (10_000, 90, "waitress 3.0.2", False),
    ],
)
def test_profile_that_knows_more_is_kept(
    *, tmp_path: Path, requests: int, peak: float, server: str, is_kept: bool
) -> None:
    """A server that was started for a night does not know what the day needs."""
    path = tmp_path / "profile.json"
    peaks = {"value": peak, "low": peak, "high": peak}
    profile(requests=requests, peak_mb=peaks, server=server).save(path)
    traffic = Traffic(save=ProfileWriter(path, "lms", "gunicorn", preload=True))
    for _ in range(40):
        traffic.second(10)
    traffic.task.end(traffic.seen())
    assert (SizingProfile.load(path).made_by == "measure") is is_kept


def test_server_of_one_process_shares_only_what_is_not_its_own() -> None:
    """The rest of its memory is in its row already."""
    alone, forked = Traffic(server="waitress"), Traffic()
    for traffic in (alone, forked):
        for _ in range(40):
            traffic.second(10)
    shared = [traffic.meter.shared_mb[0] for traffic in (alone, forked)]
    assert 0 < shared[0] < shared[1]
    assert not alone.meter.alone_mb
    assert 0 < forked.meter.alone_mb[0] <= shared[1]
    assert alone.meter.profile("learn", "lms", "waitress", True).shared_mb.value > 0


def test_shared_memory_is_planned_with_the_most_that_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = iter([60, 75, 58])
    held = (SharedMemory(size * MB, (size - 10) * MB) for size in sizes)
    monkeypatch.setattr(learning, "shared_memory", lambda *_: next(held))
    traffic = Traffic()
    for _ in range(int(2 * SHARED_SECONDS) + 1):
        traffic.second(10)
    made = traffic.meter.profile("learn", "lms", "gunicorn", True)
    assert made.shared_mb == Estimate(value=75, low=58, high=75)
    assert made.alone_mb == Estimate(value=65, low=48, high=65)


MASTER, MONITOR, WORKERS = 1, 2, [3, 4, 5, 6]


class Processes:
    """Processes as the system reports them, in MB.

    :param monkeypatch: puts them in the place of the real ones
    :param is_shared: whether the system reports by how many processes a page is shared
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_shared: bool = True) -> None:
        self.held = {MASTER: 90, MONITOR: 91, **dict.fromkeys(WORKERS, 97), os.getpid(): 80}
        self.private = {MASTER: 6, MONITOR: 8, **dict.fromkeys(WORKERS, 37)}
        self.files = {MASTER: 13, MONITOR: 1, **dict.fromkeys(WORKERS, 2), os.getpid(): 4}
        self.is_shared = is_shared
        for name in ("held_memory", "private_memory", "resident_memory", "process_memory"):
            monkeypatch.setattr(learning, name, getattr(self, name))

    def held_memory(self, pid: int) -> int:
        return self.held.get(pid, 0) * MB

    def private_memory(self, pid: int) -> int:
        return self.private[pid] * MB

    def resident_memory(self, pid: int) -> int | None:
        return (self.held[pid] + 25) * MB if pid in self.held else None

    def process_memory(self, pid: int) -> ProcessMemory:
        mapped = self.files[pid] * MB if self.is_shared else None
        return ProcessMemory(200 * MB, mapped_bytes=mapped)


def test_once_needed_are_the_launcher_the_monitor_s_own_and_each_page_of_a_file_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """90 + 8 MB, and 13 + 1 + 4 × 2 of files, and 4 that who measures maps as well."""
    Processes(monkeypatch)
    shared = shared_memory(MASTER, MONITOR, WORKERS)
    assert shared == SharedMemory((90 + 8 + 26) * MB, (91 + 26) * MB)


def test_one_process_alone_has_changed_itself_what_the_monitor_has_a_copy_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it has of its own is in its row already."""
    Processes(monkeypatch)
    monkeypatch.setattr(learning, "held_memory", {MASTER: 100 * MB}.get)
    alone = shared_memory(MASTER, MONITOR, [MASTER], is_alone=True)
    assert alone == SharedMemory((100 - 6 + 8 + 13 + 1 + 4) * MB, None)


def test_files_count_in_full_where_the_system_does_not_tell_who_shares_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As before Linux 5.4: those of the launcher stand for all."""
    Processes(monkeypatch, is_shared=False)
    shared = shared_memory(MASTER, MONITOR, WORKERS)
    assert shared == SharedMemory((90 + 8 + 25) * MB, (91 + 25) * MB)


def test_launcher_that_is_gone_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Processes(monkeypatch)
    assert shared_memory(99, MONITOR, WORKERS) is None


# The report


def report(learnt: TrafficStats, **environ: str) -> MeasuredReport:
    """Return what is told of what was learnt, on 2 CPUs with 1 GB."""
    settings, machine = load(environ), resources(2, 1024)
    made = plan(environ, 2, 1024)
    return MeasuredReport.of(learnt, Deployment(settings, machine, made))


def test_report_has_the_figures_and_the_lines_to_set() -> None:
    told = report(LEARNT)
    assert (told.requests, told.cpu_ms, told.wait_ms) == (1000, 5, 45)
    assert (told.shared_memory_mb, told.worker_memory_mb) == (60, 30)
    lines = ["NOW_LMS_WORKERS=4", "NOW_LMS_THREADS=10", "NOW_LMS_SIZING_PROFILE=learn"]
    assert told.advice == lines


def test_what_the_launcher_held_is_not_taken_off_again_by_the_advice() -> None:
    """(211 + 45) × 70 % - 60 = 119 MB, for 3 workers of 30 MB."""
    learnt, machine = LEARNT._replace(wait_ns=0), resources(2, 211, memory_limit=256 * MB)
    settings = load()
    made = compute_plan(settings, machine, "gunicorn")
    told = MeasuredReport.of(learnt, Deployment(settings, machine, made, held_bytes=45 * MB))
    assert told.advice[0] == "NOW_LMS_WORKERS=3"
    measured = settings.measured_by(profile())
    made = compute_plan(measured, machine, "gunicorn")
    told = MeasuredReport.of(learnt, Deployment(measured, machine, made, held_bytes=45 * MB))
    assert told.advice == ["NOW_LMS_WORKERS=3", "NOW_LMS_THREADS=1"]


@pytest.mark.parametrize(
    ("peak_mb", "off"),
    [(30, "-79%"), (137, "-26%"), (138, None), (200, None), (235, None), (240, "+26%")],
)
def test_memory_that_is_a_quarter_off_the_plan_is_a_warning(peak_mb: int, off: str | None) -> None:
    """Planned were 5 × 200 MB; measured 60 MB and 5 workers."""
    told = list(report(LEARNT._replace(peak_bytes=peak_mb * MB)).warnings(plan({}, 2, 1024)))
    assert [f"({off})" in warning for warning in told] == [True] * (off is not None)


def test_warning_says_what_to_set_so_that_the_guide_s_formula_is_right() -> None:
    (warning,) = report(LEARNT._replace(peak_bytes=300 * MB)).warnings(plan({}, 2, 1024))
    assert "measured 60 MB shared + 5 × 300 MB = 1560 MB, planned 1000 MB (+56%)" in warning
    remedy = "set NOW_LMS_SIZING_PROFILE=learn to plan the next start with the measured values."
    assert warning.endswith(f": {remedy}")
    environ = {"WORKER_MEMORY_MB": "100"}
    (warning,) = report(LEARNT._replace(peak_bytes=300 * MB)).warnings(plan(environ, 2, 1024))
    assert warning.endswith(": WORKER_MEMORY_MB should be 312.")


def test_it_is_told_with_the_token_alone() -> None:
    now, made, measured = live(row()), plan(), report(LEARNT)
    closed = CapacityReport.of(made, serving=True, now=now, measured=measured).to_json()
    opened = CapacityReport.of(made, serving=True, now=now, measured=measured, details=True)
    assert "measured" not in closed
    assert opened.measured == report(LEARNT)
    assert opened.warnings == list(report(LEARNT).warnings(made))
    assert '"warnings":["measured 60' in opened.to_json()


def test_before_there_is_enough_it_is_null() -> None:
    opened = CapacityReport.of(plan(), serving=True, now=live(row()), details=True)
    assert '"measured":null' in opened.to_json()
