"""What the scoreboard says at one moment, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class State(IntEnum):
    """What the deployment is doing."""

    STARTING = 0
    SERVING = 1
    DRAINING = 2
    STOPPING = 3
    STOPPED = 4


class GuardState(IntEnum):
    """What the memory guard has to say.

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


class MemorySample(NamedTuple):
    """Memory of one worker, as the monitor last saw it.

    :param rss_bytes: resident memory, shared pages included
    :param pss_bytes: the same with each shared page divided among who shares it; ``None`` where
        the system does not tell
    :param uss_bytes: memory that is the worker's alone; ``None`` where the system does not tell
    :param age_seconds: how long ago
    :param peak_bytes: the most memory of its own that it was ever seen with; 0 where the system
        does not tell
    """

    rss_bytes: int
    pss_bytes: int | None
    uss_bytes: int | None
    age_seconds: float
    peak_bytes: int = 0


class WorkerStats(NamedTuple):
    """One worker.

    :param number: its row, from 0
    :param age: how gunicorn counts its workers, from 1
    :param pid: its process; 0 in the moment after the fork
    :param start_time: when that process started, as :func:`start_time` tells
    :param is_ready: whether it has loaded the app
    :param lived_seconds: time since it was forked
    :param silent_seconds: time since its last heartbeat
    :param running_seconds: for each request that runs, for how long
    :param slots: requests that it can run at once
    :param is_leaving: whether it is being recycled
    :param waiting: connections that it has accepted and has no thread for yet
    :param served: requests that it has served
    :param busy_seconds: time that its threads have spent on them, summed up
    :param cpu_seconds: time that its threads have computed for them, the server's part included
    :param memory: what the monitor saw; ``None`` before it looked
    """

    number: int
    age: int
    pid: int
    start_time: int
    is_ready: bool
    lived_seconds: float
    silent_seconds: float
    running_seconds: tuple[float, ...]
    slots: int
    waiting: int
    is_leaving: bool
    served: int
    busy_seconds: float
    cpu_seconds: float
    memory: MemorySample | None

    @property
    def busy(self) -> int:
        """Requests that run."""
        return len(self.running_seconds)


class TrafficStats(NamedTuple):
    """What the monitor has learnt of the app from its traffic.

    :param requests: requests that it was learnt from
    :param cpu_ns: CPU time of a request, in nanoseconds, the server's part included
    :param wait_ns: time that a request waits, in nanoseconds
    :param shared_bytes: memory that is needed once
    :param peak_bytes: the most memory of its own that a warm worker was seen with
    """

    requests: int
    cpu_ns: int
    wait_ns: int
    shared_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Snapshot:
    """The table at one moment.

    :param state: what the deployment is doing
    :param workers: the workers that live
    :param restarts: workers that ended while the deployment went on serving
    :param kills: workers that ended without leaving, by SIGKILL or a crash
    :param served: requests served so far, by workers that have ended too
    :param busy_seconds: time that threads have spent on them
    :param cpu_seconds: time that they have computed for them, the server's part included
    :param task_queue: requests that wait in waitress for a thread
    :param wanted: workers that there should be: those that are planned, and what the guard and a
        limit that has changed have made of them
    :param memory_limit_bytes: the limit on memory that is nearest; 0 before the monitor looked
    :param memory_used_bytes: what counts towards it
    :param recycled: workers that the guard has recycled
    :param oom_kills: processes that the kernel has killed for want of memory since the start
    :param workers_oom_killed: workers among them
    :param guard: what the memory guard has to say
    :param learnt: what the app costs; ``None`` before enough is known
    """

    state: State
    workers: tuple[WorkerStats, ...]
    restarts: int
    crashed: int
    served: int
    busy_seconds: float
    cpu_seconds: float
    task_queue: int
    wanted: int
    memory_limit_bytes: int
    memory_used_bytes: int
    recycled: int
    oom_kills: int
    workers_oom_killed: int
    guard: GuardState
    learnt: TrafficStats | None = None

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
        """Requests that run."""
        return sum(row.busy for row in self.workers)

    @property
    def slots(self) -> int:
        """Requests that can run at once."""
        return sum(row.slots for row in self.workers)

    @property
    def utilization(self) -> float:
        """Share of the slots that are busy, 0 to 1; 0 where there is none."""
        return self.busy / self.slots if self.slots else 0.0

    @property
    def is_leaving(self) -> bool:
        """Whether the deployment drains or stops."""
        return self.state >= State.DRAINING
