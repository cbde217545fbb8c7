"""Learn from real traffic what the app costs: a duty of the monitor."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ..log import say
from ..resources.processes import process_memory, resident_memory
from ..runtime.layout import NANOSECONDS
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot, TrafficStats
from ..sizing.growth import Slope, slope
from ..sizing.plan import MB, SizingPlan
from ..sizing.profile import Estimate, SizingProfile
from .guard import WARM_REQUESTS

INTERVAL_SECONDS = 1.0
"""How often the counts are compared: a mean of one second's requests is a figure."""

SHARED_SECONDS = 60.0
"""How often the memory of the master is read: it seldom changes."""

SAVE_SECONDS = 600.0
"""How often the profile is written."""

ENOUGH_REQUESTS = 200
"""Requests from which figures are told: as many as ``flask workersize measure`` sends."""

ENOUGH_CALM = 50
"""Requests among them that came while there was CPU time to be had."""

CALM_SHARE = 0.5
"""Share of the CPUs up to which time that was not computed was waited: above it, requests also wait
for each other."""

_MOST_SECONDS = 3600
_MOST_POINTS = 100
_MOST_WORKERS = 200


class Learner:
    """Keeps what requests and workers cost, tells it in the scoreboard, and may write a profile.

    :param board: the shared table
    :param plan: the plan that the server was started with
    :param cpus: CPUs, a quota included
    :param master: the process of the master
    :param save: writes a profile; ``None`` where none is to be written
    """

    interval = INTERVAL_SECONDS

    def __init__(
        self,
        board: Scoreboard,
        plan: SizingPlan,
        cpus: float,
        master: int,
        save: Callable[[Learner], None] | None = None,
    ) -> None:
        self._board = board
        self._is_alone = plan.server == "waitress"
        self._cpus = cpus
        self._master = master
        self._save = save
        self._before: tuple[float, Snapshot] | None = None
        self._shared_due = 0.0
        self._save_due: float | None = None
        self._grows = False
        self._requests = self._calm_requests = 0
        self._cpu = self._calm_wait = 0.0
        self.cpu_ms: deque[float] = deque(maxlen=_MOST_SECONDS)
        self.wait_ms: deque[float] = deque(maxlen=_MOST_SECONDS)
        self.boot_mb: dict[int, float] = {}
        self.warm_mb: dict[int, float] = {}
        self.peak_mb: dict[int, float] = {}
        self._growth: dict[int, deque[tuple[int, float]]] = {}
        self.shared_mb: deque[float] = deque(maxlen=_MOST_POINTS)

    def run(self, now: float, snapshot: Snapshot) -> None:
        """Compare with what was seen before, and tell what has become of it."""
        if snapshot.is_leaving:
            return
        if self._before is not None:
            self._count(self._before[1], snapshot, now - self._before[0])
        self._before = (now, snapshot)
        self._remember(snapshot)
        if now >= self._shared_due:
            self._shared_due = now + SHARED_SECONDS
            if shared := self._shared():
                self.shared_mb.append(shared / MB)
            self._grows = self.growth().is_sure
        learnt = self.learnt()
        if learnt is None:
            return
        self._board.note_traffic(learnt)
        if self._save_due is None or now >= self._save_due:
            # The first time as soon as there is enough: the server may not live for long.
            self._save_due = now + SAVE_SECONDS
            self._keep()

    def end(self, snapshot: Snapshot) -> None:
        """Write the profile for the next start."""
        if self.learnt() is not None:
            self._keep()

    def learnt(self) -> TrafficStats | None:
        """Return what is known; ``None`` before it is enough."""
        peak = max(self.peaks(), default=0.0)
        is_enough = self._requests >= ENOUGH_REQUESTS and self._calm_requests >= ENOUGH_CALM
        if not is_enough or not peak or not self.shared_mb:
            return None
        return TrafficStats(
            requests=self._requests,
            cpu_ns=int(self._cpu / self._requests * NANOSECONDS),
            wait_ns=int(self._calm_wait / self._calm_requests * NANOSECONDS),
            shared_bytes=int(max(self.shared_mb) * MB),
            peak_bytes=int(peak * MB),
        )

    def peaks(self) -> list[float]:
        """Return the most memory of its own that each warm worker had, in MB.

        A leak ends where the guard recycles: planned with that, there would be fewer workers each
        time, and each could grow larger.
        """
        peaks = self.warm_mb if self._grows else self.peak_mb
        return [peaks[age] for age in self.warm_mb if age in peaks]

    def growth(self) -> Slope:
        """Return how the worker that was seen longest grows with each request, in MB."""
        longest = max(self._growth.values(), key=len, default=deque())
        return slope(list(longest))

    def _count(self, before: Snapshot, now: Snapshot, seconds: float) -> None:
        served = now.total("served") - before.total("served")
        if served <= 0:
            return
        cpu = max(now.total("cpu_ns") - before.total("cpu_ns"), 0) / NANOSECONDS
        wait = max((now.total("busy_ns") - before.total("busy_ns")) / NANOSECONDS - cpu, 0.0)
        self._requests += served
        self._cpu += cpu
        self.cpu_ms.append(1000 * cpu / served)
        # A process computes on one CPU at a time.
        if cpu <= CALM_SHARE * min(self._cpus, max(len(now.workers), 1)) * seconds:
            self._calm_requests += served
            self._calm_wait += wait
            self.wait_ms.append(1000 * wait / served)

    def _remember(self, snapshot: Snapshot) -> None:
        for row in snapshot.ready:
            if row.memory is None or not row.memory.uss_bytes:
                continue
            own = row.memory.uss_bytes / MB
            self.boot_mb.setdefault(row.age, own)
            self.peak_mb[row.age] = row.memory.peak_bytes / MB
            if row.served >= WARM_REQUESTS:
                self.warm_mb.setdefault(row.age, own)
                points = self._growth.setdefault(row.age, deque(maxlen=_MOST_POINTS))
                if not points or points[-1][1] != own:
                    points.append((row.served, own))
        for ages in (self.boot_mb, self.warm_mb, self.peak_mb, self._growth):
            while len(ages) > _MOST_WORKERS:
                del ages[min(ages)]

    def _shared(self) -> int:
        """Return the memory that is needed once: the master's, and this process' own."""
        mine = process_memory(os.getpid()) if os.getpid() != self._master else None
        own = (mine.uss_bytes or 0) if mine else 0
        if not self._is_alone:
            return own + (resident_memory(self._master) or 0)
        # The master serves by itself: what is its own counts as such. The rest is what it shares
        # with this process, which it has forked.
        master = process_memory(self._master)
        return own + (master.rss_bytes - (master.uss_bytes or 0) if master else 0)

    def _keep(self) -> None:
        if self._save is not None:
            self._save(self)


def profile_of(learner: Learner, app: str, server: str, preload: bool) -> SizingProfile:
    """Make a profile of what was learnt; there has to be enough.

    :param learner: what was learnt
    :param app: name of the app
    :param server: name of the server
    :param preload: whether the app was loaded before the workers were forked
    """
    learnt = learner.learnt()
    assert learnt is not None
    growth = learner.growth()
    return SizingProfile.made_now(
        "learn",
        app,
        server,
        preload=preload,
        requests=learnt.requests,
        shared_mb=Estimate.of(learner.shared_mb, max(learner.shared_mb)),
        boot_mb=Estimate.of(learner.boot_mb.values()),
        warm_mb=Estimate.of(learner.warm_mb.values()),
        peak_mb=Estimate.of(learner.peaks(), max(learner.peaks())),
        thread_mb=Estimate.of([0.0]),
        growth_mb=Estimate.around(1000 * growth.each, 1000 * growth.error),
        grows=growth.is_sure,
        cpu_ms=Estimate.of(learner.cpu_ms, learnt.cpu_ns / 1e6),
        wait_ms=Estimate.of(learner.wait_ms, learnt.wait_ns / 1e6),
    )


def _knows_more(path: Path, made: SizingProfile) -> bool:
    """Return whether the profile that is there was made from more requests and has more memory.

    A server that was started for a short time does not know what many requests have shown.
    """
    try:
        there = SizingProfile.load(path)
    except (OSError, ValueError):
        return False
    is_same = (there.app, there.preload, there.of_server) == (
        made.app,
        made.preload,
        made.of_server,
    )
    saw_more = there.requests > made.requests and there.peak_mb.value >= made.peak_mb.value
    return is_same and saw_more


class ProfileWriter:
    """Writes what was learnt into the profile of an app.

    :param path: the file
    :param app: name of the app
    :param server: name of the server
    :param preload: whether the app was loaded before the workers were forked
    """

    def __init__(self, path: Path, app: str, server: str, preload: bool) -> None:
        self._path = path
        self._facts = (app, server, preload)
        self._has_failed = False

    def __call__(self, learner: Learner) -> None:
        """Write it, unless what is there knows more; what cannot be written is said once."""
        made = profile_of(learner, *self._facts)
        try:
            if not _knows_more(self._path, made):
                made.save(self._path)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                say(
                    logging.WARNING,
                    f"what was learnt cannot be written to {self._path}: {error.strerror}. Let the "
                    "user of the workers write there, or unset NOW_LMS_SIZING_PROFILE.",
                )
