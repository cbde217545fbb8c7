"""How near memory is to its limit, read many times a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from .cgroups import ControlGroups, Limit, Throttling
from .files import Files, NotingReader
from .holders import NO_HOLDERS, Holders, read_holders
from .host import host_memory

LIMITS_SECONDS = 0.9
"""How often the limits themselves are read, and all that is used: they seldom change."""

FULL_SHARE = 0.9
"""Share of a limit above which the kernel may drop page cache at any moment."""

CHANGED_SHARE = 0.005
"""Share of a limit by which usage may change before the page cache is read again."""


@dataclass(frozen=True)
class MemoryState:
    """How near memory is to its limit."""

    limit_bytes: int
    used_bytes: int
    """Of a control group usage less page cache, of the machine what is not available."""

    is_group: bool
    at: str = ""
    """The folder of the group."""

    is_throttled: bool = False
    """Whether the limit is ``memory.high``, above which the kernel puts every process to sleep."""

    is_killed_together: bool = False
    """Whether the kernel kills more than one process at once (``memory.oom.group``)."""


class MemoryGauge:
    """Reads the few figures that change; their paths are looked up once.

    Between two full readings only the usage of each group is read: its statistics cost the kernel
    several times as much, and are read when they could matter. ``host`` returns total and available
    memory of the machine, in bytes; ``launcher`` is the process of the launcher.
    """

    def __init__(
        self,
        host: Callable[[], tuple[int, int]] = host_memory,
        files: Files | None = None,
        clock: Callable[[], float] = time.monotonic,
        launcher: int = 0,
    ) -> None:
        self._host = host
        self._total = host()[0]
        # On other systems there are no such files, and so no groups.
        self._groups = ControlGroups(NotingReader(files))
        self._clock = clock
        self._launcher = launcher
        self._limits: list[Limit] = []
        self._due = float("-inf")
        self._killed_together: list[str] = []

    def read(self) -> MemoryState:
        """Return the state of the group that is fullest; of the machine where none has a limit."""
        self._limits = list(self._look())
        if not self._limits:
            total, available = self._host()
            return MemoryState(total, total - available, False)
        fullest = max(self._limits, key=lambda item: item.used / item.value)
        return MemoryState(
            int(fullest.value),
            fullest.used,
            True,
            fullest.at,
            fullest.is_throttling,
            fullest.at in self._killed_together,
        )

    def _look(self) -> Iterable[Limit]:
        now = self._clock()
        if now < self._due:
            return map(self._again, self._limits)
        self._due = now + LIMITS_SECONDS
        found = [item for item in self._groups.memory_limits() if 0 < item.value < self._total]
        # Of the limits of one group the least is the nearest.
        limits = {item.at: item for item in sorted(found, key=lambda item: -item.value)}
        self._killed_together = [at for at in limits if self._groups.is_killed_together(at)]
        return limits.values()

    def holders(self, state: MemoryState, workers: Collection[int]) -> Holders:
        """Return what holds memory beside these workers: costly, some milliseconds.

        For the machine, where every other process is a neighbour, nothing is known.
        """
        if not state.is_group:
            return NO_HOLDERS
        return read_holders(state.at, self._launcher, workers)

    def throttling(self) -> Throttling | None:
        """Return how the group whose ``memory.high`` is nearest is slowed down."""
        high = [item for item in self._limits if item.is_throttling]
        nearest = max(high, key=lambda item: item.used / item.value, default=None)
        return self._groups.throttling(nearest.at) if nearest else None

    def oom_kills(self) -> int | None:
        """Return how many processes near this one the OOM killer has killed so far.

        ``None`` if the system does not count them.
        """
        return self._groups.oom_kills()

    def _again(self, limit: Limit) -> Limit:
        """Return what is used of a limit now."""
        usage = self._groups.usage(limit.at)
        is_full = usage >= FULL_SHARE * limit.value
        if not is_full and abs(usage - limit.usage) < CHANGED_SHARE * limit.value:
            # The old value, so that slow growth is compared with it, too.
            return limit
        return replace(limit, usage=usage, cache=self._groups.cache(limit.at))
