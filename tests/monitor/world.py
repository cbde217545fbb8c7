"""A small world in which workers grow, requests are served, and a master obeys, after a while."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from flask_workersize.monitor.first_request import PATIENCE_SECONDS, may_begin
from flask_workersize.monitor.guard import WARM_REQUESTS, decide
from flask_workersize.monitor.observation import (
    CRITICAL_SHARE,
    Action,
    Done,
    History,
    Kind,
    Observation,
    Rules,
)
from flask_workersize.monitor.surge import Surges
from flask_workersize.resources.gauge import MemoryState
from flask_workersize.resources.holders import NO_HOLDERS, Holders
from flask_workersize.runtime.snapshot import WorkerMemory, WorkerStats
from tests.health.snapshots import row
from tests.plain import MB

BLANK = row()

STEPS = {Kind.REPLACE: (1, 0), Kind.FINISH: (-1, 0), Kind.FEWER: (0, 1), Kind.MORE: (0, -1)}
"""Stand-ins, and workers that are missing, which each action adds."""


@dataclass(frozen=True)
class App:
    """What a worker of an app needs, in MB.

    :param fresh: to begin with
    :param warm: after its first requests
    :param leak: more with each request
    """

    fresh: float = 20
    warm: float = 40
    leak: float = 0
    burst: float = 0
    """More for a second, in one of fifty requests."""

    first: float = 0
    """More from the first request on."""

    def own(self, served: float) -> float:
        """Return what a worker has of its own after so many requests."""
        warmth = min(served / WARM_REQUESTS, 1)
        first = self.first if served else 0
        return self.fresh + warmth * (self.warm - self.fresh) + self.leak * served + first


@dataclass
class Process:
    """A worker.

    :param ready_at: when it has loaded the app
    :param gone_at: when it will have ended, if it was told to
    :param is_told: whether the guard has told it, and not the master, which tells nobody
    :param warm_bytes: what it had of its own when it was seen to be warm
    """

    age: int
    ready_at: float
    gone_at: float | None = None
    is_told: bool = False
    served: float = 0
    burst: float = 0
    warm_bytes: int | None = None
    burst_until: float = 0
    needed_bytes: int = 0
    surge_bytes: int = 0
    born_at: float = 0
    refused_since: float | None = None

    def running(self, now: float) -> tuple[float, ...]:
        """Return for how long a burst has lasted; it began between two looks."""
        return (now - self.burst_until + 1.01,) if self.burst_until > now else ()


@dataclass
class World:
    """A server under a limit.

    :param app: what it serves
    :param planned: workers that are planned
    :param limit: the limit on memory, in MB
    :param requests_per_second: what comes, for all workers
    :param boot_seconds: how long a worker takes to load the app
    :param leave_seconds: how long one takes that was told to end
    :param obey_seconds: how often the master looks what is wanted, and who is gone
    :param look_seconds: how often the guard looks
    :param shared: what is not a worker's own, in MB
    :param is_group: whether the limit is that of a control group
    :param held: what no worker holds, and can be found out
    :param is_throttled: whether the limit is memory.high
    :param is_killed_together: whether the kernel kills all at once
    :param needed_by_plan: memory that the plan assumes for a worker, in MB; ``None`` if first
        requests wait for nothing
    """

    app: App
    planned: int
    limit: float
    requests_per_second: float = 100
    boot_seconds: float = 0.3
    leave_seconds: float = 0.1
    obey_seconds: float = 0.05
    look_seconds: float = 0.05
    shared: Callable[[World], float] = lambda world: 60
    is_group: bool = True
    held: Callable[[World], Holders] = lambda world: NO_HOLDERS
    is_throttled: bool = False
    is_killed_together: bool = False
    needed_by_plan: float | None = None
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        self.now = self.since = 0.0
        self.chance = Random(1)
        self.surges = Surges()
        self.is_free = True
        self.next_age = 1
        self.processes: list[Process] = []
        self.surge = self.fewer = self.crashed = self.peak = self.needed = 0
        self.obeys_at = 0.0
        self.oom_kill_at: float | None = None
        self.done: list[Done] = []
        self.history = History()
        self.usage: list[int] = []
        self.kills: list[float] = []
        self.most = self.planned
        for _ in range(self.planned):
            self.start(ready_at=0.0)
        self.least_ready = self.planned

    @property
    def wanted(self) -> int:
        """Workers that there should be now."""
        return max(1, self.planned + self.surge - self.fewer)

    @property
    def serving(self) -> list[Process]:
        """Workers that take requests."""
        return [one for one in self.processes if one.ready_at <= self.now and one.gone_at is None]

    @property
    def used(self) -> float:
        """Memory that is used, in MB."""
        held = self.held(self).total_bytes / MB
        return self.shared(self) + held + sum(map(self.own, self.processes))

    def own(self, one: Process) -> float:
        """Return what a worker has of its own, in MB."""
        return self.app.own(one.served) + one.burst

    def start(self, ready_at: float) -> None:
        """Fork a worker."""
        self.processes.append(Process(self.next_age, ready_at, born_at=self.now))
        self.next_age += 1

    def kinds(self) -> list[Kind]:
        """Return what was done, in order, without warnings."""
        return [past.action.kind for past in self.done if past.action.kind is not Kind.WARN]

    def times(self, kind: Kind) -> list[float]:
        """Return when something was done."""
        return [past.at for past in self.done if past.action.kind is kind]

    def run(self, seconds: float) -> World:
        """Let time pass."""
        until = self.now + seconds
        while self.now < until:
            self.now += self.look_seconds
            self.serve()
            self.let_the_kernel_look()
            if self.now >= self.obeys_at:
                self.obeys_at = self.now + self.obey_seconds
                self.obey()
            self.guard()
            self.least_ready = min(self.least_ready, len(self.serving))
            self.most = max(self.most, len(self.processes))
        return self

    def serve(self) -> None:
        """Serve what has come, and let those end who were told to."""
        serving = self.serving
        idle = [one for one in serving if one.burst_until <= self.now]
        beginning = 0
        for one in idle:
            if not one.served and self.is_refused(one, beginning):
                continue
            beginning += not one.served
            before, one.burst = one.served, one.burst if not self.app.burst else 0
            one.served += self.requests_per_second * self.look_seconds / len(idle)
            if self.app.burst and self.chance.random() < (one.served - before) / 50:
                one.burst, one.burst_until = self.app.burst, self.now + 1
        self.processes = [one for one in self.processes if (one.gone_at or self.now) >= self.now]

    def is_refused(self, one: Process, beginning: int) -> bool:
        """Return whether a worker leaves connections to others before its first request."""
        if self.needed_by_plan is None:
            return False
        if one.refused_since is None:
            one.refused_since = self.now
        free = CRITICAL_SHARE * self.limit - self.used
        taken = max(self.needed / MB - self.app.fresh, 0)
        is_late = self.now >= one.refused_since + PATIENCE_SECONDS
        return not is_late and not may_begin(free, beginning, taken, self.needed_by_plan)

    def let_the_kernel_look(self) -> None:
        """Kill the largest worker where there is too much."""
        while self.is_group and self.used > self.limit and self.processes:
            self.processes.remove(max(self.processes, key=self.own))
            self.crashed, self.oom_kill_at = self.crashed + 1, self.now
            self.kills.append(self.now)

    def obey(self) -> None:
        """Start who is missing; let the oldest go where there are too many."""
        while len(self.processes) < self.wanted:
            self.start(self.now + self.boot_seconds)
        leaving = sum(one.is_told for one in self.processes)
        for one in self.processes[: max(len(self.processes) - leaving - self.wanted, 0)]:
            one.gone_at = one.gone_at or max(self.now, one.burst_until) + self.leave_seconds

    def guard(self) -> None:
        """Observe, decide, act: what the monitor does."""
        if self.is_free is (self.used >= self.rules.recycle_share * self.limit):
            self.is_free = not self.is_free
            self.since = self.now
        seen = self.observe()
        action = decide(seen, self.rules)
        self.check(action)
        if action.answers_kill:
            self.oom_kill_at = None
        if action.kind is Kind.NOTHING:
            return
        self.done.append(Done(self.now, action))
        self.history = self.history.after(self.now, action)
        going = self.chosen(action.count) if action.kind is Kind.FEWER else []
        surge, fewer = STEPS.get(action.kind, (0, 0))
        self.surge, self.fewer = self.surge + surge, self.fewer + fewer * action.count
        if action.kind is Kind.RECYCLE:
            assert action.worker is not None
            going = [one for one in self.processes if one.age == action.worker.age]
            assert len(going) == 1
        for told in going:
            told.is_told = True
            told.gone_at = max(self.now, told.burst_until) + self.leave_seconds

    def chosen(self, count: int) -> list[Process]:
        """Return whom the scaler lets go: those that run nothing first."""
        serving = self.serving
        if not len(serving) == len(self.processes) == self.wanted:
            return []
        return sorted(serving, key=lambda one: one.burst_until)[: min(count, len(serving) - 1)]

    def observe(self) -> Observation:
        """Return what can be seen."""
        took = self.surges.look(self.now, self.rows(), int(self.limit * MB))
        for one in self.serving:
            own = int(self.own(one) * MB)
            self.peak = max(self.peak, own)
            if one.warm_bytes is None and one.served >= WARM_REQUESTS:
                one.warm_bytes = own
            # A look between two requests shows that what was taken is there again.
            needed = own if one.warm_bytes is None else min(own, one.warm_bytes)
            one.needed_bytes = max(one.needed_bytes, needed)
            if self.app.burst and one.burst_until and one.burst_until <= self.now:
                one.needed_bytes = max(one.needed_bytes, own + int(self.app.burst * MB))
            one.surge_bytes = took.get(one.age, 0)
            if one.surge_bytes:
                one.needed_bytes = max(one.needed_bytes, own)
            self.needed = max(self.needed, one.needed_bytes)
        self.usage = [*self.usage[-8:], int(self.used * MB)]
        grown = (self.usage[-1] - self.usage[0]) / (len(self.usage) * self.look_seconds)
        return Observation(
            now=self.now,
            memory=MemoryState(
                int(self.limit * MB),
                self.usage[-1],
                self.is_group,
                is_throttled=self.is_throttled,
                is_killed_together=self.is_killed_together,
            ),
            planned=self.planned,
            wanted=self.wanted,
            workers=self.rows(),
            peak_bytes=self.peak,
            needed_bytes=self.needed,
            oom_kill_at=self.oom_kill_at,
            history=self.history,
            since=self.since,
            growth_bytes=grown,
            holders=self.held(self),
        )

    def rows(self) -> tuple[WorkerStats, ...]:
        """Return what the scoreboard has of the workers."""
        return tuple(
            BLANK._replace(
                age=one.age,
                is_ready=one.ready_at <= self.now,
                is_leaving=one.is_told,
                lived_seconds=self.now - one.born_at,
                running_seconds=one.running(self.now),
                memory=self.memory(one),
            )
            for one in self.processes
        )

    def memory(self, one: Process) -> WorkerMemory:
        """Return what the ledger has of a worker."""
        own, first = int(self.own(one) * MB), int(self.app.fresh * MB)
        return WorkerMemory(
            own, None, own, first, one.warm_bytes, own,
            most_needed_bytes=one.needed_bytes, surge_bytes=one.surge_bytes,
        )  # fmt: skip

    def serving_after(self, action: Action) -> list[Process]:
        """Return who still serves when the guard and the master have let somebody go."""
        going = {action.worker.age} if action.kind is Kind.RECYCLE and action.worker else set()
        if action.kind is Kind.FEWER:
            going = {one.age for one in self.chosen(action.count)}
        if action.kind in (Kind.FEWER, Kind.FINISH) and not going:
            many = max(len(self.processes) - (self.wanted - action.count), 0)
            going = {one.age for one in self.processes[:many]}
        return [one for one in self.serving if one.age not in going]

    def check(self, action: Action) -> None:
        """Hold an action to what has to be so in every world."""
        if action.kind in (Kind.NOTHING, Kind.WARN):
            return
        assert self.serving_after(action), f"{action} leaves nobody who serves"
        if action.reason.startswith(("A worker was OOM-killed", "The plan is too large: ")):
            return
        going = [one.age for one in self.processes if one.gone_at is not None]
        starting = [one.age for one in self.processes if one.ready_at > self.now]
        assert not [*going, *starting], f"{action} while {going} go and {starting} start"
