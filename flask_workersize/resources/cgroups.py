"""Limits of control groups, versions 1 and 2, also both at once.

A control group is a folder, and its limits are files in it::

    /sys/fs/cgroup                             where the hierarchy is mounted
    /sys/fs/cgroup/shop.slice                  memory.max: 1073741824
    /sys/fs/cgroup/shop.slice/lms.service      cpu.max: 150000 100000    <- this process

A process is bound by its own group (the leaf) and by every group above it: the tightest limit is
the one that counts. So there are three steps for each controller, "memory" and "cpu":

1. ``/proc/self/cgroup`` says which version has the controller, and the path of the group in it;
2. ``/proc/self/mountinfo`` says at which folder that hierarchy is mounted, and from which path on;
3. walk from the leaf up to the mount point, inclusive, and read the limits of each folder.

:class:`~flask_workersize.resources.hierarchies.Hierarchies` does the first two; the walk is here.
Sources: Linux, Documentation/admin-guide/cgroup-v2.rst ("memory.max", "cpu.max"),
cgroup-v1/memory.rst and Documentation/scheduler/sched-bwc.rst; cgroups(7).

What is missing is skipped. What cannot be read or understood is skipped with a note. Weights,
shares, protections (low, min, soft limits) and swap limit nothing: they are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .files import Files, NotingReader, whole_number
from .hierarchies import Hierarchies

_DEFAULT_PERIOD = 100_000
"""Microseconds; what the kernel takes where ``cpu.max`` was written without a period."""

_V2_MEMORY_LIMITS = ("memory.max", "memory.high")
_OOM_STATISTICS = frozenset({"oom_kill"})


class _Version(NamedTuple):
    """Where a version keeps what is used: a file, and the page cache in ``memory.stat``.

    Not all of ``file`` there: tmpfs is in it, which the kernel cannot drop.
    """

    usage: str
    cache: frozenset[str]


_V1 = _Version("memory.usage_in_bytes", frozenset({"total_inactive_file", "total_active_file"}))
_V2 = _Version("memory.current", frozenset({"inactive_file", "active_file"}))
_V1_STATISTICS = _V1.cache | {"hierarchical_memory_limit"}


@dataclass(frozen=True)
class Limit:
    """A limit that applies to this process."""

    value: float
    source: str
    at: str
    usage: int = 0
    cache: int = 0

    @property
    def used(self) -> int:
        """Bytes that cannot be had without swapping: usage less page cache."""
        return max(self.usage - self.cache, 0)


class ControlGroups:
    """Reads the limits that apply to this process, and notes what it could not read."""

    def __init__(self, files: Files) -> None:
        self._reader = NotingReader(files)
        self._hierarchies = Hierarchies(self._reader)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be read or understood, as "class: detail", without repeats."""
        return self._reader.notes

    def memory_limits(self) -> Iterator[Limit]:
        """Yield every limit on memory, the leaf's first."""
        groups = self._hierarchies.groups("memory")
        limits = self._memory_v2 if groups.is_v2 else self._memory_v1
        yield from limits(groups.folders)

    def usage_again(self, limit: Limit) -> int:
        """Return what the group of a limit on memory holds now, in bytes."""
        return self._bytes(f"{limit.at}/{_version_of(limit).usage}") or 0

    def cache_again(self, limit: Limit) -> int:
        """Return how much of it is page cache now, in bytes."""
        names = _version_of(limit).cache
        return sum(self._reader.table(f"{limit.at}/memory.stat", names).values())

    def cpu_limits(self) -> Iterator[Limit]:
        """Yield every limit on CPU time, the leaf's first."""
        groups = self._hierarchies.groups("cpu")
        source = "cgroup2:cpu.max" if groups.is_v2 else "cgroup1:cpu.cfs_quota_us"
        cpus_of = self._cpus_v2 if groups.is_v2 else self._cpus_v1
        for folder in groups.folders:
            if (cpus := cpus_of(folder)) is not None:
                yield Limit(cpus, source, folder)

    def oom_kills(self) -> int | None:
        """Return how many processes of this group the kernel has killed for want of memory.

        The count of the process' own group (cgroup-v2.rst, "memory.events"; cgroup-v1/memory.rst,
        "memory.oom_control"), where there is none that of the machine (/proc/vmstat).
        """
        groups = self._hierarchies.groups("memory")
        name = "memory.events" if groups.is_v2 else "memory.oom_control"
        for path in [f"{folder}/{name}" for folder in groups.folders[:1]] + ["/proc/vmstat"]:
            count = self._reader.table(path, _OOM_STATISTICS).get("oom_kill")
            if count is not None:
                return count
        return None

    def _memory_v2(self, folders: Iterable[str]) -> Iterator[Limit]:
        for folder in folders:
            limits = {name: self._bytes(f"{folder}/{name}") for name in _V2_MEMORY_LIMITS}
            if all(limit is None for limit in limits.values()):
                continue
            usage = self._bytes(f"{folder}/{_V2.usage}") or 0
            stat = self._reader.table(f"{folder}/memory.stat", _V2.cache)
            cache = sum(stat.values())
            for name, limit in limits.items():
                if limit is not None:
                    yield Limit(limit, f"cgroup2:{name}", folder, usage, cache)

    def _memory_v1(self, folders: Iterable[str]) -> Iterator[Limit]:
        # memory.stat also knows the limits of ancestors that are not to be seen from here. Where
        # they are, it repeats them: the group that really has the limit is to be named.
        inherited: list[Limit] = []
        for folder in folders:
            own = self._bytes(f"{folder}/memory.limit_in_bytes")
            stat = self._reader.table(f"{folder}/memory.stat", _V1_STATISTICS)
            hierarchical = stat.pop("hierarchical_memory_limit", None)
            if own is None and hierarchical is None:
                continue
            usage, cache = self._bytes(f"{folder}/{_V1.usage}") or 0, sum(stat.values())
            if own is not None:
                yield Limit(own, "cgroup1:memory.limit_in_bytes", folder, usage, cache)
            if hierarchical is not None:
                source = "cgroup1:hierarchical_memory_limit"
                inherited.append(Limit(hierarchical, source, folder, usage, cache))
        yield from inherited

    def _cpus_v2(self, folder: str) -> float | None:
        """Return quota / period of ``cpu.max``: "150000 100000", "max 100000"."""
        path = f"{folder}/cpu.max"
        words = self._reader.words(path)
        if not words or words[0] == "max":
            return None
        quota = whole_number(words[0])
        period = whole_number(words[1]) if len(words) > 1 else _DEFAULT_PERIOD
        if not quota or not period or len(words) > 2:
            self._reader.note("malformed", path)
            return None
        return quota / period

    def _cpus_v1(self, folder: str) -> float | None:
        """Return quota / period, each in a file of its own; a quota of -1 is none."""
        quota_path, period_path = f"{folder}/cpu.cfs_quota_us", f"{folder}/cpu.cfs_period_us"
        quota_text = (self._reader.text(quota_path) or "").strip()
        if re.fullmatch(r"|0|-[0-9]+", quota_text):
            return None
        period_text = (self._reader.text(period_path) or "").strip()
        quota, period = whole_number(quota_text), whole_number(period_text)
        if quota and period:
            return quota / period
        if not quota:
            self._reader.note("malformed", quota_path)
        elif period_text:
            self._reader.note("malformed", period_path)
        return None

    def _bytes(self, path: str) -> int | None:
        """Return the number in a file; ``None`` where there is none, such as "max"."""
        text = (self._reader.text(path) or "").strip()
        if text in ("", "max"):
            return None
        number = whole_number(text)
        if number is None:
            self._reader.note("malformed", path)
        return number


def _version_of(limit: Limit) -> _Version:
    return _V2 if limit.source.startswith("cgroup2:") else _V1
