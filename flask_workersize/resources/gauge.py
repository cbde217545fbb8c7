"""How near memory is to its limit, read many times a second."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from .cgroups import ControlGroups
from .files import Files, RealFiles
from .host import host_memory


@dataclass(frozen=True)
class MemoryState:
    """How near memory is to its limit.

    :param limit_bytes: the limit that is nearest
    :param used_bytes: what counts towards it: of a control group usage less inactive page cache,
        of the machine what is not available
    :param is_group: whether the limit is that of a control group
    """

    limit_bytes: int
    used_bytes: int
    is_group: bool


class MemoryGauge:
    """Reads the few figures that change; where they are to be found is looked up once.

    :param host: returns total and available memory of the machine, in bytes
    :param files: where files are read
    :param platform: as :data:`sys.platform` gives it
    """

    def __init__(
        self,
        host: Callable[[], tuple[int, int]] = host_memory,
        files: Files | None = None,
        platform: str = sys.platform,
    ) -> None:
        self._host = host
        self._total = host()[0]
        files = RealFiles() if files is None else files
        self._groups = ControlGroups(files) if platform == "linux" else None

    def read(self) -> MemoryState:
        """Return the state of the group that is fullest; of the machine where none has a limit."""
        limits = list(self._groups.memory_limits()) if self._groups else []
        limits = [item for item in limits if 0 < item.value < self._total]
        if not limits:
            total, available = self._host()
            return MemoryState(total, total - available, False)
        fullest = max(limits, key=lambda item: item.used / item.value)
        return MemoryState(int(fullest.value), fullest.used, True)

    def oom_kills(self) -> int | None:
        """Return how many processes near this one the kernel has killed for want of memory.

        :returns: the number so far; ``None`` where the system does not count
        """
        return self._groups.oom_kills() if self._groups else None
