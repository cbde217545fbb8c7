"""How near memory is to its limit, read many times a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from .cgroups import ControlGroups, Limit
from .files import Files, NotingReader
from .host import host_memory

LIMITS_SECONDS = 0.9
"""How often the limits themselves are read, and all that is used: they seldom change."""

FULL_SHARE = 0.9
"""Share of a limit above which the kernel may drop page cache at any moment."""

CHANGED_SHARE = 0.005
"""Share of a limit by which usage may change before it counts, and the page cache is read anew."""


@dataclass(frozen=True)
class MemoryState:
    """How near memory is to its limit."""

    limit_bytes: int
    used_bytes: int
    """Of a control group usage less page cache, of the machine what is not available."""

    is_group: bool


class MemoryGauge:
    """Reads the few figures that change; where they are to be found is looked up once.

    Between two full readings only the usage of each group is read: its statistics cost the kernel
    several times as much, and are read when they could matter. ``host`` returns total and available
    memory of the machine, in bytes.
    """

    def __init__(
        self,
        host: Callable[[], tuple[int, int]] = host_memory,
        files: Files | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._total = host()[0]
        # On other systems there are no such files, and so no groups.
        self._groups = ControlGroups(NotingReader(files))
        self._clock = clock
        self._limits: list[Limit] = []
        self._due = float("-inf")

    def read(self) -> MemoryState:
        """Return the state of the group that is fullest; of the machine where none has a limit."""
        self._limits = list(self._look())
        if not self._limits:
            total, available = self._host()
            return MemoryState(total, total - available, False)
        fullest = max(self._limits, key=lambda item: item.used / item.value)
        return MemoryState(int(fullest.value), fullest.used, True)

    def _look(self) -> Iterable[Limit]:
        now = self._clock()
        if now < self._due:
            return map(self._again, self._limits)
        self._due = now + LIMITS_SECONDS
        found = [item for item in self._groups.memory_limits() if 0 < item.value < self._total]
        # Of the limits of one group the least is the nearest.
        return {item.at: item for item in sorted(found, key=lambda item: -item.value)}.values()

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
            # As it was, so that what creeps is compared with what it was, too.
            return limit
        return replace(limit, usage=usage, cache=self._groups.cache(limit.at))
