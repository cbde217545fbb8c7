"""A small world of processes, slots and CPUs, in which requests compute and wait.

Each process computes in one thread at a time, and the CPUs are shared by those that compute.
Whoever waits does so beside all others. ``python -m tests.monitor.adapting_world`` prints what the
rule finds in it, beside the best shape of all.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from heapq import heappop, heappush
from random import Random

from flask_workersize.monitor.adapting import (
    AdaptingRules,
    Alone,
    Move,
    Sample,
    State,
    adapt,
)
from tests.plain import MB

SWITCH = 0.005
"""Seconds that a thread computes before another of its process does."""

GUARD_SHARE = 0.7
"""Share of the memory from which the guard acts."""

MOST_SLOTS = CLIENTS = 64

OTHERS_MB = 45
"""What the launcher holds."""

SPREAD = 0.2
"""How far requests differ from their mean."""


@dataclass(frozen=True)
class App:
    """What requests cost.

    :param compute: seconds of CPU time
    :param wait: seconds of waiting
    :param worker: MB of a worker
    :param thread: MB of each thread that a worker has ever had
    :param burst: MB more while one of fifty requests runs
    :param leak: MB that a worker keeps of each request
    """

    compute: float
    wait: float
    worker: float = 20
    thread: float = 0.1
    burst: float = 0
    leak: float = 0


APPS = {
    "cpu": App(0.0114, 0),
    "wait": App(0.0011, 0.050),
    "both": App(0.0072, 0.045),
    "memory": App(0.0069, 0.005, worker=40),
}
"""Those of bench_regret, with the CPU time that its best rates on one CPU come to."""


@dataclass(eq=False)
class Request:
    """One request of a client."""

    asked: float
    compute: float
    wait: float
    burst: float
    begun: float = 0.0
    left: float = 0.0
    spent: float = 0.0
    joined: int = -1
    worker: Worker | None = None


@dataclass(eq=False)
class Worker:
    """A process; ``part`` is the CPU time until the next thread computes in it."""

    used: float = 0.0
    held: int = 0
    most_held: int = 0
    joins: int = 0
    leaked: float = 0.0
    burst: float = 0.0
    part: float = 0.0
    computing: Request | None = None
    runnable: deque[Request] = field(default_factory=deque)


@dataclass
class Count:
    """What happened since the last sample."""

    done: int = 0
    cpu: float = 0.0
    busy: float = 0.0
    waited: float = 0.0
    begun: int = 0
    alone: int = 0
    alone_cpu: float = 0.0
    alone_wait: float = 0.0


@dataclass
class World:
    """A server and its clients.

    :param app: what is asked for; may be changed
    :param cpus: CPUs that all processes share
    :param workers: processes
    :param slots: requests that each runs at once
    :param clients: who each ask again as soon as they are answered
    :param rate: or requests a second, whoever asks
    :param noise: how far each figure is off, up to
    :param seed: of all chance
    :param limit: MB that there are; from 70 % on the guard acts
    :param rules: ``None`` to leave the shape alone
    :param boot: seconds that a worker takes to load the app
    :param delay_seen: share of the waiting for a CPU that is taken for waiting
    :param contention: share that each other thread of a process adds to computing in it
    :param tells_waits: whether it is known how long requests wait
    """

    app: App
    cpus: float
    workers: int = 1
    slots: int = 1
    clients: int = CLIENTS
    rate: float = 0
    noise: float = 0.1
    seed: int = 1
    limit: float = 1024
    rules: AdaptingRules | None = None
    boot: float = 0.7
    tells_waits: bool = True
    delay_seen: float = 0.0
    contention: float = 0.0

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)
        self.noisy = Random(self.seed + 1)
        self.now = self.virtual = self.counted_at = 0.0
        self.computing = self.order = self.in_service = 0
        self.wakes: list[tuple[float, int, Request | None]] = []
        self.ends: list[tuple[float, int, Worker]] = []
        self.queue: deque[Request] = deque()
        self.count = Count()
        self.state = State()
        self.moves: list[tuple[float, Move]] = []
        self.answers: list[tuple[float, float]] = []
        self.peak = self.need = 0.0
        self.guard_acts = self.has_recycled = False
        self.procs = [Worker() for _ in range(self.workers)]
        self.booting: list[float] = []
        if self.rate:
            self._wake(self.chance.expovariate(self.rate), None)
        for _ in range(0 if self.rate else self.clients):
            self._ask(self.chance.random() * 0.05)

    @property
    def memory(self) -> float:
        """MB that are in use."""
        return OTHERS_MB + sum(map(self._own, self.procs)) + len(self.booting) * self.app.worker

    def _own(self, one: Worker) -> float:
        return self.app.worker + one.most_held * self.app.thread + one.leaked + one.burst

    def _wake(self, at: float, who: Request | None) -> None:
        self.order += 1
        heappush(self.wakes, (at, self.order, who))

    def _request(self, at: float) -> Request:
        spread = 1 + SPREAD * (2 * self.chance.random() - 1)
        burst = self.app.burst if self.app.burst and self.chance.random() < 0.02 else 0.0
        return Request(at, self.app.compute * spread, self.app.wait * spread, burst)

    def _ask(self, at: float) -> None:
        one = self._request(at)
        self._wake(at, one)

    def _place(self) -> None:
        """Let workers take requests, the one that holds fewest first."""
        slots = self.slots
        while self.queue:
            best = min(self.procs, key=_held)
            if best.held >= slots:
                return
            self._begin(best, self.queue.popleft())

    def _begin(self, worker: Worker, one: Request) -> None:
        one.begun, one.worker = self.now, worker
        worker.joins += 1
        one.joined = worker.joins if worker.held == 0 else -1
        worker.held += 1
        worker.most_held = max(worker.most_held, worker.held)
        worker.burst += one.burst
        self.in_service += 1
        self.count.begun += 1
        self.count.waited += self.now - one.asked
        one.left = one.compute
        self._compute(worker, one)

    def _compute(self, worker: Worker, one: Request) -> None:
        if worker.computing is not None:
            worker.runnable.append(one)
            return
        worker.computing = one
        self.computing += 1
        self.order += 1
        # Known before it computes: who comes meanwhile costs the next ones.
        worker.part = min(one.left, SWITCH) * (1 + self.contention * min(len(worker.runnable), 10))
        heappush(self.ends, (self.virtual + worker.part, self.order, worker))

    def _computed(self, worker: Worker) -> None:
        one = worker.computing
        assert one is not None
        part = min(one.left, SWITCH)
        worker.used += worker.part
        one.spent += worker.part
        one.left -= part
        worker.computing = None
        self.computing -= 1
        if one.left > 1e-12:
            worker.runnable.append(one)
        elif one.wait:
            self._wake(self.now + one.wait, one)
        else:
            self._end(one)
        if worker.runnable and worker.computing is None:
            self._compute(worker, worker.runnable.popleft())

    def _end(self, one: Request) -> None:
        worker, count, now = one.worker, self.count, self.now
        assert worker is not None
        ran = now - one.begun
        if one.joined == worker.joins:
            delayed = max(ran - one.spent - one.wait, 0)
            count.alone += 1
            count.alone_cpu += one.spent
            count.alone_wait += one.wait + self.delay_seen * delayed
        worker.held -= 1
        worker.burst -= one.burst
        if self.app.leak:
            worker.leaked += self.app.leak
            self._recycle()
        self.in_service -= 1
        count.done += 1
        count.busy += ran
        count.cpu += one.spent
        self.answers.append((now, now - one.asked))
        if not self.rate:
            another = self._request(now)
            # A connection is kept as long as nobody waits.
            if self.queue or worker not in self.procs or worker.held >= self.slots:
                self.queue.append(another)
            else:
                self._begin(worker, another)
        if self.queue:
            self._place()

    def run(self, until: float) -> World:
        """Let time pass."""
        while True:
            speed = min(1.0, self.cpus / self.computing) if self.computing else 1.0
            end = self.now + (self.ends[0][0] - self.virtual) / speed if self.ends else math.inf
            wake = self.wakes[0][0] if self.wakes else math.inf
            at = min(end, wake)
            if at > until:
                if self.ends:
                    self.virtual += (until - self.now) * speed
                self.now = until
                return self
            if end <= wake:
                self.now, self.virtual = max(self.now, end), self.ends[0][0]
                self._computed(heappop(self.ends)[2])
            else:
                self.virtual += (at - self.now) * speed
                self.now = at
                self._woken(heappop(self.wakes)[2])

    def _woken(self, one: Request | None) -> None:
        if one is None:
            self._wake(self.now + self.chance.expovariate(self.rate), None)
            one = self._request(self.now)
        if one.worker is None:
            self.queue.append(one)
            self._place()
        else:
            self._end(one)

    def adapting(self, seconds: float) -> World:
        """Let time pass, and let the rule decide once a second."""
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.run(min(until, self.now + 1.0))
            self._boot()
            self._guard()
            sample = self.sample()
            assert self.rules is not None
            self.state, move = adapt(self.rules, self.state, sample)
            if move is not None:
                self._obey(sample, move)
        return self

    def _boot(self) -> None:
        for _ in [at for at in self.booting if at <= self.now]:
            self.procs.append(Worker())
        self.booting = [at for at in self.booting if at > self.now]
        self._place()

    def _guard(self) -> None:
        """See what the workers need, and whether memory is short or was since the last look."""
        self.need = max(self.need, *(self._own(one) - one.leaked for one in self.procs))
        self._recycle()
        is_short = self.memory >= GUARD_SHARE * self.limit
        self.guard_acts, self.has_recycled = self.has_recycled or is_short, False

    def _recycle(self) -> None:
        """Recycle who has leaked most, if memory is short; the real guard looks as soon."""
        self.peak = max(self.peak, self.memory)
        worst = max(self.procs, key=lambda one: one.leaked)
        if self.memory >= GUARD_SHARE * self.limit and worst.leaked:
            worst.leaked, self.has_recycled = 0.0, True

    def _obey(self, sample: Sample, move: Move) -> None:
        rules = self.rules
        assert rules is not None
        assert not sample.guard_acts
        assert 1 <= move.slots <= rules.most_slots
        assert (
            sample.wanted
            <= move.workers
            <= max(sample.wanted, min(sample.wanted + 1, rules.most_workers))
        )
        assert (move.workers, move.slots) != (sample.wanted, sample.slots)
        assert rules.follows_slots or move.slots == sample.slots
        assert rules.follows_workers or move.workers == sample.wanted
        assert move.reason
        self.moves.append((self.now, move))
        self.slots = move.slots
        if move.workers > sample.wanted:
            self.booting.append(self.now + self.boot)
        self._place()

    def off(self, value: float) -> float:
        """Return a figure as it is measured."""
        return value * (1 + self.noise * (2 * self.noisy.random() - 1))

    def sample(self) -> Sample:
        """Return what was seen since the last one."""
        count, seconds = self.count, self.now - self.counted_at
        self.count, self.counted_at = Count(), self.now
        used = [one.used for one in self.procs]
        for one in self.procs:
            one.used = 0.0
        wanted = len(self.procs) + len(self.booting)
        waited = count.waited / count.begun if count.begun else 0.0
        return Sample(
            now=self.now,
            seconds=seconds,
            workers=len(self.procs),
            wanted=wanted,
            slots=self.slots,
            done=round(self.off(count.done)),
            cpu_seconds=self.off(count.cpu),
            busy=self.off(count.busy / seconds),
            waited_seconds=self.off(waited) if self.tells_waits else None,
            cpu_of_group=min(1.0, self.off(sum(used) / seconds / self.cpus)),
            cpu_of_processes=tuple(min(1.0, self.off(one / seconds)) for one in used),
            alone=Alone(count.alone, self.off(count.alone_cpu), self.off(count.alone_wait)),
            memory_free_bytes=(GUARD_SHARE * self.limit - self.memory) * MB,
            worker_need_bytes=self.off(self.need) * MB,
            thread_need_bytes=self.off(self.app.thread + self.app.burst) * MB,
            guard_acts=self.guard_acts,
        )

    def throughput(self, since: float) -> tuple[float, float]:
        """Return answers a second since then, and their p99 in seconds."""
        late = sorted(took for at, took in self.answers if at >= since)
        if not late:
            return 0.0, math.inf
        return len(late) / (self.now - since), late[int(0.99 * (len(late) - 1))]


def _held(one: Worker) -> int:
    return one.held


@dataclass(frozen=True)
class Place:
    """Where an app is served, as in bench_regret.

    :param app: its name
    :param cpus: CPUs
    :param limit: MB of memory
    :param contention: share that each other thread of a process adds to computing in it
    """

    app: str
    cpus: float
    limit: float
    contention: float = 0.0

    @property
    def most_workers(self) -> int:
        """The bound of the guide."""
        return 2 * math.floor(self.cpus) + 1

    @property
    def guess(self) -> int:
        """Workers of the guide, which has 200 MB for each."""
        return max(1, min(self.most_workers, int(self.limit - OTHERS_MB) // 200))

    def fits(self, workers: int, slots: int) -> bool:
        """Return whether memory has room for a shape before the guard acts."""
        app = APPS[self.app]
        return OTHERS_MB + workers * (app.worker + app.thread * slots) < GUARD_SHARE * self.limit

    def world(self, workers: int, slots: int, seed: int = 1) -> World:
        """Return a world in this shape, with a rule that may change it."""
        rules = AdaptingRules(self.cpus, self.most_workers, MOST_SLOTS)
        return World(
            APPS[self.app], self.cpus, workers, slots, seed=seed, limit=self.limit, rules=rules,
            contention=self.contention,
        )  # fmt: skip


@dataclass(frozen=True)
class Best:
    """The best shape: of those that reach most, within 1 %, the one with the shortest tail."""

    shape: tuple[int, int]
    rate: float
    p99: float


@cache
def best(place: Place, seconds: float = 3.0) -> Best:
    """Try all shapes that memory has room for.

    In a few seconds one may answer more than it can for long, of what it began before: no rate is
    above what the CPUs can compute, or the clients ask for.
    """
    app = APPS[place.app]
    bound = min(place.cpus / app.compute, CLIENTS / (app.compute + app.wait))
    found: list[Best] = []
    two = 2 * math.ceil(place.cpus)
    largest = max(one for one in range(1, place.most_workers + 1) if place.fits(one, 1))
    for workers in sorted({1, 2, math.ceil(place.cpus), two, largest}):
        for slots in (1, 2, 4, 8, 16, 32, 64):
            is_sensible = workers <= place.most_workers and workers * slots <= 128
            if is_sensible and place.fits(workers, slots):
                world = place.world(workers, slots).run(seconds + 1)
                rate, p99 = world.throughput(1.0)
                found.append(Best((workers, slots), min(rate, bound), p99))
    top = max(found, key=lambda one: one.rate)
    return min((one for one in found if one.rate >= 0.99 * top.rate), key=lambda one: one.p99)


HEADER = "App    CPUs Limit   Start |   Best   1/s p99 ms |  Found   1/s p99 ms | Ratio  p99 Moves"


def line(place: Place, world: World) -> str:
    """Return what was found in the last five seconds beside the best."""
    top, (rate, p99) = best(place), world.throughput(world.now - 5)
    is_near = rate >= 0.95 * top.rate and p99 <= 1.25 * top.p99
    cells = [
        f"{place.app:6} {place.cpus:4g} {place.limit:5g} {_text((place.guess, 1))}",
        f"{_text(top.shape)} {top.rate:5.0f} {top.p99 * 1000:6.0f}",
        f"{_text((len(world.procs), world.slots))} {rate:5.0f} {p99 * 1000:6.0f}",
        f"{rate / top.rate:5.2f} {p99 / top.p99:4.2f} {len(world.moves):5}",
    ]
    return " | ".join(cells) + ("" if is_near else "  <--")


def _text(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}".rjust(7)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--cpus", nargs="+", type=float, default=[1, 2, 4, 8])
    add("--limits", nargs="+", type=float, default=[256, 512, 1024], metavar="MB")
    add("--seeds", type=int, default=1)
    add("--contention", type=float, default=0.0)
    add("--moves", action="store_true", help="print each move and its reason")
    args = parser.parse_args()
    print(HEADER)
    for app, cpus, limit in itertools.product(APPS, args.cpus, args.limits):
        place = Place(app, cpus, limit, args.contention)
        for seed in range(1, args.seeds + 1):
            world = place.world(place.guess, 1, seed).adapting(25)
            print(line(place, world), flush=True)
            for at, move in world.moves if args.moves else ():
                print(f"    {at:5.1f} s  {move.workers} × {move.slots}: {move.reason}")


if __name__ == "__main__":
    main()
