"""Measures from traffic what the app costs: a task of the monitor."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from ..log import say
from ..resources.host import StolenShare
from ..resources.processes import held_memory, private_memory, process_memory, resident_memory
from ..runtime.layout import NANOSECONDS
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot, TrafficStats, WorkerMemory
from ..sizing.growth import Slope, slope
from ..sizing.plan import MB, SizingPlan
from ..sizing.profile import Estimate, SizingProfile
from .loop import Look, Task

INTERVAL_SECONDS = 1.0
"""How often the counts are compared: a mean of one second's requests is a figure."""

SHARED_SECONDS = 60.0
"""How often the memory of the master is read: it seldom changes."""

SAVE_SECONDS = 600.0
"""How often the profile is written."""

ENOUGH_REQUESTS = 200
"""Requests from which figures are reported: as many as ``flask workersize measure`` sends."""

ENOUGH_CALM = 50
"""Requests among them that came while CPU time was free."""

CALM_SHARE = 0.5
"""Share of the CPUs up to which time that was not computed was waited: above it, requests also wait
for each other."""

_MOST_SECONDS = 3600
_MOST_POINTS = 100
_MOST_WORKERS = 200


class Totals(NamedTuple):
    """What all workers have counted so far, those that have ended included."""

    served: int
    busy_ns: int
    cpu_ns: int
    cpu_wait_ns: int = 0


class TrafficMeter:
    """What requests and workers cost, from the counts and the ledgers of a server.

    ``cpus`` is how many CPUs the server has, a quota included; ``None`` if its requests come one
    after the other, and so never wait for each other. ``stolen`` returns what a hypervisor stole
    since its last call, for each second computed.
    """

    def __init__(
        self, cpus: float | None = None, stolen: Callable[[], float] | None = None
    ) -> None:
        self._cpus = cpus
        self._stolen = stolen or StolenShare().read
        self._before: tuple[float, Totals] | None = None
        self._requests = self._calm_requests = 0
        self._cpu = self._calm_wait = 0.0
        self._points: dict[int, deque[tuple[int, float]]] = {}
        self.cpu_ms: deque[float] = deque(maxlen=_MOST_SECONDS)
        self.wait_ms: deque[float] = deque(maxlen=_MOST_SECONDS)
        self.workers: dict[int, WorkerMemory] = {}
        self.shared_mb: deque[float] = deque(maxlen=_MOST_POINTS)
        self.alone_mb: deque[float] = deque(maxlen=_MOST_POINTS)

    def observe(self, now: float, totals: Totals, workers: Mapping[int, WorkerMemory]) -> None:
        """Compare with the counts before, from an earlier time of the same clock.

        ``workers`` are those that are ready, by any number that names them for good.
        """
        stolen = self._stolen()
        if self._before is not None:
            begun, before = self._before
            self._count(before, totals, (now - begun) * max(len(workers), 1), now - begun, stolen)
        self._before = (now, totals)
        for name, memory in workers.items():
            if memory.first_bytes is None:
                continue
            self.workers[name] = memory
            if memory.warm_bytes is not None:
                points = self._points.setdefault(name, deque(maxlen=_MOST_POINTS))
                if not points or points[-1][0] != memory.served:
                    points.append((memory.served, memory.private_bytes / MB))
        while len(self.workers) > _MOST_WORKERS:
            oldest = min(self.workers)
            del self.workers[oldest]
            self._points.pop(oldest, None)

    def note_shared(self, shared: SharedMemory) -> None:
        """Record the memory that is needed once."""
        self.shared_mb.append(shared.with_launcher / MB)
        if shared.alone is not None:
            self.alone_mb.append(shared.alone / MB)

    def stats(self) -> TrafficStats | None:
        """Return the measurements; ``None`` before there are enough."""
        is_enough = self._requests >= ENOUGH_REQUESTS and self._calm_requests >= ENOUGH_CALM
        peaks = self.peaks_mb()
        if not (is_enough and peaks and self.shared_mb):
            return None
        return TrafficStats(
            requests=self._requests,
            cpu_ns=int(self._cpu / self._requests * NANOSECONDS),
            wait_ns=int(self._calm_wait / self._calm_requests * NANOSECONDS),
            shared_bytes=int(max(self.shared_mb) * MB),
            peak_bytes=int(max(peaks) * MB),
        )

    def peaks_mb(self) -> list[float]:
        """Return the most private memory of each warm worker.

        A leak ends where the guard recycles: planned with that, there would be fewer workers each
        time, and each could grow larger.
        """
        warm = [item for item in self.workers.values() if item.warm_bytes is not None]
        if self.growth().is_sure:
            return _mb(item.warm_bytes for item in warm)
        return _mb(item.peak_bytes for item in warm)

    def growth(self) -> Slope:
        """Return how the worker that was seen longest grows with each request, in MB."""
        return slope(list(max(self._points.values(), key=len, default=())))

    def profile(
        self,
        made_by: Literal["measure", "learn"],
        app: str,
        server: str,
        preload: bool,
        thread_mb: Iterable[float] = (0.0,),
    ) -> SizingProfile:
        """Make a profile of the measurements, which have to include requests and a warm worker."""
        growth, peaks = self.growth(), self.peaks_mb()
        boots = _mb(item.first_bytes for item in self.workers.values())
        return SizingProfile.made_now(
            made_by,
            app,
            server,
            preload=preload,
            requests=self._requests,
            shared_mb=Estimate.of(self.shared_mb, max(self.shared_mb)),
            alone_mb=Estimate.of(self.alone_mb, max(self.alone_mb)) if self.alone_mb else None,
            # On a busy machine a first sample may come after the first requests.
            boot_mb=Estimate.of(boots, min(boots)),
            warm_mb=Estimate.of(_mb(item.warm_bytes for item in self.workers.values())),
            peak_mb=Estimate.of(peaks, max(peaks)),
            thread_mb=Estimate.of(thread_mb),
            growth_mb=Estimate.around(1000 * growth.each, 1000 * growth.error),
            grows=growth.is_sure,
            cpu_ms=Estimate.of(self.cpu_ms, 1000 * self._cpu / self._requests),
            wait_ms=Estimate.of(self.wait_ms, 1000 * self._calm_wait / self._calm_requests),
        )

    def _count(
        self, before: Totals, now: Totals, process_seconds: float, seconds: float, stolen: float
    ) -> None:
        served = now.served - before.served
        if served <= 0:
            return
        cpu = max(now.cpu_ns - before.cpu_ns, 0) / NANOSECONDS
        # On a busy machine requests also wait for a CPU, which threads would not make up for.
        no_cpu = max(now.cpu_wait_ns - before.cpu_wait_ns, 0) / NANOSECONDS + stolen * cpu
        wait = max((now.busy_ns - before.busy_ns) / NANOSECONDS - cpu - no_cpu, 0.0)
        self._requests += served
        self._cpu += cpu
        self.cpu_ms.append(1000 * cpu / served)
        # A process computes on one CPU at a time.
        if self._cpus is None or cpu <= CALM_SHARE * min(self._cpus * seconds, process_seconds):
            self._calm_requests += served
            self._calm_wait += wait
            self.wait_ms.append(1000 * wait / served)


def _mb(sizes: Iterable[int | None]) -> list[float]:
    return [size / MB for size in sizes if size is not None]


class LearningTask(Task):
    """Reports in the scoreboard what real traffic costs, and may write a profile with ``save``."""

    interval = INTERVAL_SECONDS

    def __init__(
        self,
        board: Scoreboard,
        plan: SizingPlan,
        cpus: float,
        master: int,
        save: Callable[[TrafficMeter], None] | None = None,
    ) -> None:
        self._board = board
        self._is_alone = plan.server == "waitress"
        self._master = master
        self._save = save
        self._shared_next = self._save_next = float("-inf")
        self.meter = TrafficMeter(cpus)

    def run(self, now: float, look: Look) -> None:
        """Compare with the counts before, and record the result."""
        snapshot = look()
        if snapshot.is_leaving:
            return
        workers = {row.age: row.memory for row in snapshot.ready if row.memory}
        self.meter.observe(now, Totals(*map(snapshot.total, Totals._fields)), workers)
        if now >= self._shared_next:
            self._shared_next = now + SHARED_SECONDS
            pids = [row.pid for row in snapshot.ready]
            if shared := shared_memory(self._master, os.getpid(), pids, self._is_alone):
                self.meter.note_shared(shared)
        stats = self.meter.stats()
        if stats is None:
            return
        self._board.note_traffic(stats)
        if self._save and now >= self._save_next:
            # The first time as soon as there is enough data: the server may stop soon.
            self._save_next = now + SAVE_SECONDS
            self._save(self.meter)

    def end(self, snapshot: Snapshot) -> None:
        """Write the profile for the next start."""
        if self._save and self.meter.stats() is not None:
            self._save(self.meter)


class SharedMemory(NamedTuple):
    """Memory that is needed once, in bytes: the master's, the monitor's, and pages of files."""

    with_launcher: int
    alone: int | None
    """For a server of one process; ``None`` if it is one: then that is the other."""


def shared_memory(
    master: int, monitor: int, workers: Collection[int], is_alone: bool = False
) -> SharedMemory | None:
    """Return the memory that is needed once; ``None`` if the master is gone.

    A page of a file counts once, however many processes of the server map it, and by its share
    if others on the machine map it too. The measuring process maps the same pages, but not for
    long: its share counts.

    A server of one process is its own master: its private memory counts as a worker's. It
    writes the same pages as the monitor, so the monitor's copies are no more than those that a
    worker makes.
    """
    held, resident = held_memory(master), resident_memory(master)
    if not resident:
        return None
    # If the system does not report shares, use the master's pages of files for all.
    files = _mapped_memory({master, monitor, os.getpid()}, workers) or resident - held
    copied = private_memory(monitor)
    if is_alone:
        return SharedMemory(max(held - private_memory(master), 0) + copied + files, None)
    return SharedMemory(held + copied + files, max(held, held_memory(monitor)) + files)


def _mapped_memory(single: set[int], workers: Collection[int]) -> int:
    """Return what these processes map of files and shared memory, each page once, in bytes.

    Counting is costly: one worker stands for all, which map the same.
    """
    alike = sorted(set(workers) - single)
    counts = dict.fromkeys(single, 1) | dict.fromkeys(alike[:1], len(alike))
    found = [(process_memory(pid), count) for pid, count in counts.items()]
    return sum(count * (memory.mapped_bytes or 0) for memory, count in found if memory)


class ProfileWriter:
    """Writes what was measured from traffic into the profile of an app.

    ``found_threads`` returns the threads per worker that an adaptive size has reached.
    """

    def __init__(
        self,
        path: Path,
        app: str,
        server: str,
        preload: bool,
        found_threads: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._path = path
        self._facts = (app, server, preload)
        self._found_threads = found_threads
        self._has_failed = False

    def __call__(self, meter: TrafficMeter) -> None:
        """Write it, unless the file knows more; a failure is logged once."""
        found = self._found_threads()
        made = meter.profile("learn", *self._facts).model_copy(update={"found_threads": found})
        there = _that_knows_more(self._path, made)
        try:
            if there is None or there.found_threads != (found or there.found_threads):
                made = there.model_copy(update={"found_threads": found}) if there else made
                # Anyone who can write there could have put a link to any file in its place.
                made.save(self._path, within=self._path.parent)
        except OSError as error:
            if not self._has_failed:
                problem = f"cannot write the profile to {self._path}: {error.strerror}"
                remedy = "Make it writable for the workers' user, or unset NOW_LMS_SIZING_PROFILE"
                say(logging.WARNING, f"{problem}. {remedy}.")
            self._has_failed = True


def _that_knows_more(path: Path, made: SizingProfile) -> SizingProfile | None:
    """Return the profile that is there if it was made from more requests and has more memory.

    A server that was started for a short time does not know what many requests have shown.
    """
    try:
        there = SizingProfile.load(path)
    except (OSError, ValueError):
        return None
    is_same_app = there.app == made.app and there.preload == made.preload
    saw_more = there.requests > made.requests and there.peak_mb.value >= made.peak_mb.value
    return there if is_same_app and there.of_server == made.of_server and saw_more else None
