"""Figures of the operating system, from psutil."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class HostFacts:
    """What the operating system reports outside control groups.

    :param cpus: logical CPUs that are online, at least 1
    :param affinity: CPUs this process may run on, at least 1; ``None`` if the system has no
        affinity
    :param memory_total: physical memory, in bytes
    :param memory_available: memory available without swapping, in bytes
    :param platform: as in :data:`sys.platform`: "linux", "darwin", "win32"
    :param notes: what could only be approximated, as "class: detail"
    """

    cpus: int
    affinity: int | None
    memory_total: int
    memory_available: int
    platform: str
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls) -> HostFacts:
        """Read the figures of this machine, for this process."""
        cpus = psutil.cpu_count() or 1
        known = _memory_of_psutil()
        total, available = known or _memory_without_proc()
        notes = () if known else (_NO_MEMINFO,)
        return cls(cpus, _affinity(), total, available, sys.platform, notes)


_NO_MEMINFO = (
    "approximate: /proc/meminfo cannot be read; counting free memory and page cache as available"
)


def host_memory() -> tuple[int, int]:
    """Return total and available memory, in bytes.

    If /proc does not show it (``ProcSubset=pid`` of systemd), free memory is that of the C
    library, and what the kernel can drop that of /sys.
    """
    return _memory_of_psutil() or _memory_without_proc()


def _memory_without_proc() -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return total, min(free + page_cache(), total)


def _memory_of_psutil() -> tuple[int, int] | None:
    try:
        memory = psutil.virtual_memory()
    except (psutil.Error, OSError):
        return None
    return memory.total, memory.available


def page_cache(nodes: Path = Path("/sys/devices/system/node")) -> int:
    """Return the memory that holds pages of files, in bytes; 0 if it is not known."""
    kilobytes = 0
    for file in nodes.glob("node*/meminfo"):
        with suppress(OSError, ValueError):
            found = re.findall(r"ctive\(file\): +([0-9]+) kB", file.read_text("ascii"))
            kilobytes += sum(map(int, found))
    return kilobytes * 1024


@dataclass(frozen=True)
class CpuTimes:
    """CPU time of this machine since it was started, in total, in seconds.

    :param computing: time that processes computed
    :param idle: time with nothing to compute
    :param stolen: time that the hypervisor gave to other machines while processes wanted to compute
    """

    computing: float = 0.0
    idle: float = 0.0
    stolen: float = 0.0

    @classmethod
    def read(cls) -> CpuTimes:
        """Read them; all are 0 if /proc is hidden (``ProcSubset=pid`` of systemd)."""
        try:
            now = psutil.cpu_times()
        except (psutil.Error, OSError):
            return cls()
        idle = now.idle + getattr(now, "iowait", 0.0)
        computing = now.user + now.system + getattr(now, "nice", 0.0)
        return cls(computing, idle, getattr(now, "steal", 0.0))


class StolenShare:
    """How much was stolen for each second computed, from one call of :meth:`read` to the next.

    Linux counts neither as CPU time nor as waiting for a CPU what a hypervisor steals from a
    thread ("steal" in /proc/stat, proc_stat(5)): it looks like waiting for a database.
    """

    def __init__(self, read: Callable[[], CpuTimes] = CpuTimes.read) -> None:
        self._read = read
        self._before = read()

    def read(self) -> float:
        """Return stolen seconds for each second computed, at least 0."""
        before, self._before = self._before, self._read()
        return stolen_share(before, self._before)


def stolen_share(before: CpuTimes, now: CpuTimes) -> float:
    """Return how much was stolen for each second computed between two moments, at least 0."""
    computed, stolen = now.computing - before.computing, now.stolen - before.stolen
    return max(stolen, 0.0) / computed if computed > 0 else 0.0


def _affinity() -> int | None:
    """Return the number of CPUs this process may run on; macOS does not report it."""
    try:
        return len(psutil.Process().cpu_affinity()) or None
    except (AttributeError, psutil.Error, OSError):
        return None
