"""The scoreboard at one moment, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from .queue_times import QueueTotals


class State(IntEnum):
    """State of the deployment."""

    STARTING = 0
    SERVING = 1
    DRAINING = 2
    STOPPING = 3
    STOPPED = 4


class GuardState(IntEnum):
    """State of the memory guard.

    ``OK`` is nothing, ``RECYCLING`` that it recycled a worker lately, ``REDUCED`` that there are
    fewer workers than planned, ``WARN`` that memory is short and nothing it can do helps,
    ``CRITICAL`` the same of a server of one process, shortly before the kernel acts.
    """

    OFF = 0
    OK = 1
    RECYCLING = 2
    REDUCED = 3
    WARN = 4
    CRITICAL = 5


class WorkerMemory(NamedTuple):
    """Memory of one worker, in bytes: what the monitor has sampled in its life.

    Private memory is the worker's alone (USS). Where the system does not report it, only what the
    worker has more than at its first sample counts, and ``first_bytes`` is ``None``.
    """

    rss_bytes: int
    pss_bytes: int | None
    private_bytes: int
    first_bytes: int | None = None
    """Private when the worker was ready."""

    warm_bytes: int | None = None
    """Private once its caches were full; ``None`` before."""

    peak_bytes: int = 0
    """The most private memory it has had."""

    served: int = 0
    """Requests it had served when it was last sampled in full."""

    age_seconds: float = 0.0
    """Time since then."""

    most_needed_bytes: int = 0
    """The most private memory it has had since it was ready, but for what it had grown by: what it
    takes for a while counts, a leak does not."""

    surge_bytes: int = 0
    """What the running request has taken so far, if that is much: it may give it back."""

    @property
    def uss_bytes(self) -> int | None:
        """Private memory; ``None`` where the system does not report it."""
        return None if self.first_bytes is None else self.private_bytes

    @property
    def grown_bytes(self) -> int:
        """What recycling would give back for longer than the successor's first requests."""
        kept = self.private_bytes - self.surge_bytes
        return 0 if self.warm_bytes is None else max(kept - self.warm_bytes, 0)


class AloneTotals(NamedTuple):
    """Requests that ran alone in their process, and what they computed and waited, in nanoseconds.

    Others that run at the same time make one wait for the GIL, which looks like waiting.
    """

    requests: int = 0
    cpu_ns: int = 0
    wait_ns: int = 0


class WorkerStats(NamedTuple):
    """One worker."""

    number: int
    age: int
    pid: int
    start_time: int
    is_ready: bool
    lived_seconds: float
    silent_seconds: float
    running_seconds: tuple[float, ...]
    slots: int
    held: int
    waiting: int
    is_leaving: bool
    served: int
    busy_ns: int
    cpu_wait_ns: int
    alone: AloneTotals
    cpu_ns: int
    memory: WorkerMemory | None

    @property
    def busy(self) -> int:
        """Slots in use, by a running request or a slow client."""
        return max(len(self.running_seconds), min(self.held, self.slots))

    @property
    def private_bytes(self) -> int:
        """Its private memory; 0 before the first sample."""
        return self.memory.private_bytes if self.memory else 0

    @property
    def grown_bytes(self) -> int:
        """How much it has grown since it was warm."""
        return self.memory.grown_bytes if self.memory else 0

    @property
    def needed_bytes(self) -> int:
        """What it needs at its peak without growing, as far as that is known."""
        most = self.memory.most_needed_bytes if self.memory else 0
        return max(most, self.private_bytes - self.grown_bytes)


class TrafficStats(NamedTuple):
    """What the monitor has measured of the app from its traffic."""

    requests: int
    cpu_ns: int
    wait_ns: int
    shared_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Snapshot:
    """The table at one moment.

    ``stored`` has the words of the header by name, ``connections`` those that wait in the kernel
    for the listeners (``None`` if not read, or the system does not report it), ``waits`` the
    mean and the longest time that requests of the last minute waited, in seconds, and
    ``queue_totals`` what was counted of that (``None`` if not read). ``uptime_seconds`` is the
    time since the deployment was started, ``cpus`` are those that there were when the limits were
    last read (0 if they are not read), and ``workers_advised`` as many workers as fit into memory
    if those of the plan do not (else 0).
    """

    state: State
    workers: tuple[WorkerStats, ...]
    stored: Mapping[str, int]
    task_queue: int
    wanted: int
    workers_oom_killed: int
    guard: GuardState
    traffic: TrafficStats | None = None
    connections: int | None = None
    slots_most: int = 0
    waits: tuple[float, float] | None = None
    queue_totals: QueueTotals | None = None
    uptime_seconds: float = 0.0
    cpus: float = 0.0
    workers_advised: int = 0

    def total(self, name: str) -> int:
        """Return what all workers have counted, those that have ended included."""
        counted: int = sum(getattr(worker, name) for worker in self.workers)
        return self.stored[name] + counted

    @property
    def occupied_ns(self) -> int:
        """Return the time that slots were busy since the start, with requests that still run."""
        running = sum(ran for row in self.workers for ran in row.running_seconds)
        return self.total("busy_ns") + round(running * 1e9)

    @property
    def queued(self) -> int | None:
        """Connections and requests that wait for a free slot."""
        return None if self.connections is None else self.connections + self.waiting

    @property
    def waiting(self) -> int:
        """Requests that a server has accepted and has no thread for yet."""
        return self.task_queue + sum(row.waiting for row in self.workers)

    @property
    def ready(self) -> tuple[WorkerStats, ...]:
        """Workers that have loaded the app."""
        return tuple(row for row in self.workers if row.is_ready)

    @property
    def busy(self) -> int:
        """Slots that are occupied."""
        return sum(row.busy for row in self.workers)

    @property
    def slots(self) -> int:
        """Requests that can run at once."""
        return sum(row.slots for row in self.workers)

    @property
    def utilization(self) -> float:
        """Share of the slots that are busy, 0 to 1; 0 where there is none."""
        # After there were more slots, more may still run.
        return min(self.busy / self.slots, 1.0) if self.slots else 0.0

    @property
    def is_leaving(self) -> bool:
        """Whether the deployment drains or stops."""
        return self.state >= State.DRAINING
