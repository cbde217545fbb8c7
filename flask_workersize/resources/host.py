"""Figures of the operating system, as psutil gives them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class HostFacts:
    """What the operating system reports outside control groups.

    :param cpus: logical CPUs that are online, at least 1
    :param affinity: CPUs this process may run on, at least 1; ``None`` where the system has no
        such notion
    :param memory_total: physical memory, in bytes
    :param memory_available: memory that can be had without swapping, in bytes
    :param platform: as :data:`sys.platform` gives it: "linux", "darwin", "win32"
    """

    cpus: int
    affinity: int | None
    memory_total: int
    memory_available: int
    platform: str

    @classmethod
    def read(cls) -> HostFacts:
        """Read the figures of this machine, for this process."""
        cpus = psutil.cpu_count() or 1
        total, available = host_memory()
        return cls(cpus, _affinity(), total, available, sys.platform)


def host_memory() -> tuple[int, int]:
    """Return total and available memory, in bytes; from the C library without /proc."""
    try:
        memory = psutil.virtual_memory()
    except (psutil.Error, OSError):
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return memory.total, memory.available


def _affinity() -> int | None:
    """Return the number of CPUs this process may run on; macOS cannot tell."""
    try:
        return len(psutil.Process().cpu_affinity()) or None
    except (AttributeError, psutil.Error, OSError):
        return None
