"""What may be seen of memory, and what may be done about it: plain values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from ..resources.gauge import MemoryState
from ..resources.holders import NO_HOLDERS, Holders
from ..runtime.snapshot import WorkerStats
from ..sizing.plan import MB

HORIZON_SECONDS = 0.5
"""How far ahead growth is projected: some times what an action takes to have an effect."""

LEAST_GAIN = 0.02
"""Share of the limit that a recycled worker has to give back at least: less is noise."""

LEAST_GAIN_BESIDE_OTHERS = 0.1
"""The same on a machine, for all workers together, as a share of what its others leave."""

CRITICAL_SHARE = 0.9
"""Share of the limit above which workers are removed, and a server of one process is not ready.
Closer to the limit the kernel takes back pages of the programs themselves, and all slows down."""

TIGHT_SHARE = 0.8
"""The same where more is at stake than one worker: if the kernel kills all processes of the group
together (``memory.oom.group``), or puts them to sleep long before (``memory.high``)."""


class Kind(StrEnum):
    """What can be done: ``REPLACE`` starts the successor of a last worker, ``FINISH`` lets that go.

    ``EXIT`` is for a server of one process, which nothing can replace.
    """

    NOTHING = "nothing"
    RECYCLE = "recycle"
    REPLACE = "replace"
    FINISH = "finish"
    FEWER = "fewer"
    MORE = "more"
    WARN = "warn"
    EXIT = "exit"


@dataclass(frozen=True)
class Action:
    """What to do, to which worker, and why; ``count`` workers at once."""

    kind: Kind
    worker: WorkerStats | None = None
    reason: str = ""
    count: int = 1
    is_answer: bool = False
    """Whether this is the whole answer to the OOM kill of a worker."""

    @property
    def answers_kill(self) -> bool:
        """Whether this action handles the OOM kill of a worker.

        Also by the end of a stand-in, which may be what was killed; growing back forgets it.
        """
        return self.is_answer or self.kind in (Kind.FEWER, Kind.FINISH, Kind.MORE)


NOTHING = Action(Kind.NOTHING)


@dataclass(frozen=True)
class Done:
    """An action of the past, and when it was, in seconds of a monotonic clock."""

    at: float
    action: Action


@dataclass(frozen=True)
class History:
    """What was done before, as far as it counts; times are those of a monotonic clock."""

    last: Done | None = None
    """The last thing that was done."""

    recycled_at: float = float("-inf")
    """When a worker was recycled, or its successor started."""

    removed_at: float = float("-inf")
    """When workers were removed."""

    added_at: float = float("-inf")
    """When one was added, unless one was removed since."""

    added_in_vain: int = 0
    """How often one was removed after one had been added."""

    @property
    def changed_at(self) -> float:
        """When there were to be more or fewer workers."""
        return max(self.removed_at, self.added_at)

    def after(self, at: float, action: Action) -> History:
        """Return what it is after an action; a warning changes nothing."""
        if action.kind in (Kind.NOTHING, Kind.WARN):
            return self
        done = replace(self, last=Done(at, action))
        match action.kind:
            case Kind.RECYCLE | Kind.REPLACE:
                return replace(done, recycled_at=at)
            case Kind.MORE:
                return replace(done, added_at=at)
            case Kind.FEWER:
                in_vain = self.added_in_vain + (self.added_at > float("-inf"))
                return replace(done, removed_at=at, added_at=float("-inf"), added_in_vain=in_vain)
        return done


@dataclass(frozen=True)
class Rules:
    """What the operator set."""

    recycle_share: float = 0.7
    """Share of the limit above which workers are recycled."""

    worker_max_bytes: int | None = None
    """Private memory above which a worker is recycled."""

    patience_seconds: float = 30.0
    """How long an action may be under way before it is given up."""

    exits: bool = False
    """Whether a server of one process is to end before the kernel ends it."""


@dataclass(frozen=True)
class Observation:
    """The current state; times are those of a monotonic clock."""

    now: float
    memory: MemoryState
    planned: int
    wanted: int
    """Workers that there should be now."""

    workers: tuple[WorkerStats, ...]
    peak_bytes: int = 0
    """The most private memory that a worker was seen with, those that were killed included."""

    needed_bytes: int = 0
    """The most that a worker was seen to need without growing."""

    oom_kill_at: float | None = None
    """When the kernel last killed a worker; ``None`` if all of them are accounted for."""

    history: History = History()
    """What was done."""

    since: float = 0.0
    """When memory last went above the share from which workers are recycled, or below it."""

    growth_bytes: float = 0.0
    """How much more is used in a second."""

    holders: Holders = NO_HOLDERS
    """What else holds memory, as far as it was checked."""

    @property
    def limit_bytes(self) -> int:
        """The limit on memory."""
        return self.memory.limit_bytes

    @property
    def used_bytes(self) -> int:
        """Memory in use."""
        return self.memory.used_bytes

    @property
    def critical_bytes(self) -> float:
        """What may be used before workers are removed."""
        return critical_share(self.memory) * self.limit_bytes

    @property
    def held_by_others(self) -> Holders:
        """What else holds memory, at most what is not private to workers."""
        return self.holders.within(self.others_bytes)

    @property
    def knows_sizes(self) -> bool:
        """Whether the system reports what is private to each worker, and each was measured."""
        return all(one.memory and one.memory.first_bytes is not None for one in self.workers)

    @property
    def least_gain_bytes(self) -> float:
        """What a recycled worker has to give back at least."""
        if self.memory.is_group:
            return LEAST_GAIN * self.limit_bytes
        return LEAST_GAIN_BESIDE_OTHERS * self.left_bytes / max(len(self.workers), 1)

    @property
    def left_bytes(self) -> int:
        """What others leave of the limit."""
        return max(self.limit_bytes - self.others_bytes, 0)

    @property
    def ready(self) -> list[WorkerStats]:
        """Workers that take requests and stay, the one with most memory first.

        Of more than are wanted the master lets the oldest go.
        """
        staying = [worker for worker in self.workers if not worker.is_leaving]
        staying.sort(key=lambda worker: worker.age)
        ready = [worker for worker in staying[-self.wanted :] if worker.is_ready]
        return sorted(ready, key=lambda worker: -worker.private_bytes)

    @property
    def others_bytes(self) -> int:
        """Memory in use that is not private to a worker."""
        return max(self.used_bytes - sum(worker.private_bytes for worker in self.workers), 0)


def critical_share(state: MemoryState) -> float:
    """Return the share of a limit above which workers are removed."""
    return TIGHT_SHARE if state.is_throttled or state.is_killed_together else CRITICAL_SHARE


def short_share(state: MemoryState, rules: Rules) -> float:
    """Return the share of a limit above which memory is short."""
    return min(rules.recycle_share, critical_share(state))


def is_short(state: MemoryState, growth_bytes: float, rules: Rules) -> bool:
    """Return whether something should be done, now or because of what is to come.

    True if used is above the first share, or used + growth in a second × horizon above the
    critical one.
    """
    ahead = state.used_bytes + max(growth_bytes, 0.0) * HORIZON_SECONDS
    is_full = state.used_bytes >= short_share(state, rules) * state.limit_bytes
    return is_full or ahead >= critical_share(state) * state.limit_bytes


def short_bytes(seen: Observation, rules: Rules) -> float:
    """Return what may be used before memory is short."""
    return short_share(seen.memory, rules) * seen.limit_bytes


def mb(size: float) -> str:
    """Return a size in words."""
    return f"{round(size / MB)} MB"
