"""Limits of control groups, versions 1 and 2, also both at once.

A control group is a folder, and its limits are files in it::

    /sys/fs/cgroup                             where the hierarchy is mounted
    /sys/fs/cgroup/shop.slice                  memory.max: 1073741824
    /sys/fs/cgroup/shop.slice/lms.service      cpu.max: 150000 100000    <- this process

A process is bound by its own group (the leaf) and by every group above it: the tightest limit is
the one that counts. So there are three steps for each controller, "memory" and "cpu":

1. ``/proc/self/cgroup`` has the version with the controller, and the path of the group in it;
2. ``/proc/self/mountinfo`` has the folder where that hierarchy is mounted, and from which path on;
3. walk from the leaf up to the mount point, inclusive, and read the limits of each folder.

:class:`~flask_workersize.resources.hierarchies.Hierarchies` does the first two; the walk is here.
Sources: Linux, Documentation/admin-guide/cgroup-v2.rst ("memory.max", "cpu.max"),
cgroup-v1/memory.rst and Documentation/scheduler/sched-bwc.rst; cgroups(7).

What is missing is skipped. What cannot be read or understood is skipped with a note. Weights,
shares, protections (low, min, soft limits) and swap limit nothing: they are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .files import NotingReader, whole_number
from .hierarchies import Hierarchies

_DEFAULT_PERIOD = 100_000
"""Microseconds; the kernel's default if no period was set."""

_INHERITED = "hierarchical_memory_limit"


@dataclass(frozen=True)
class Limit:
    """A limit that applies to this process."""

    value: float
    source: str
    at: str
    usage: int = 0
    cache: int = 0

    @property
    def is_throttling(self) -> bool:
        """Whether the kernel slows all processes above it, instead of ending one."""
        return self.source.endswith(":memory.high")

    @property
    def used(self) -> int:
        """Bytes that cannot be had without swapping: usage less page cache."""
        return max(self.usage - self.cache, 0)


@dataclass(frozen=True)
class Throttling:
    """How the kernel has slowed processes down because of ``memory.high`` of a group."""

    high_bytes: int
    times: int
    """How often the limit was exceeded so far."""

    pressure_percent: float
    """Share of the last 10 seconds in which processes waited for memory; 100 if not known."""


class ControlGroups:
    """Reads the limits that apply to this process; ``reader`` notes what it could not read."""

    def __init__(self, reader: NotingReader) -> None:
        self._reader = reader
        hierarchies = Hierarchies(reader)
        self._cpu_is_v2, self._cpu_folders = hierarchies.groups("cpu")
        self._is_v2, folders = hierarchies.groups("memory")
        self._folders = folders if self._is_v2 else list(self._counting(folders))
        self._kills_at: str | None = None
        # Not all of "file" in memory.stat: tmpfs is in it, which the kernel cannot drop.
        cache = ("inactive_file", "active_file")
        self._cache = cache if self._is_v2 else [f"total_{name}" for name in cache]

    def memory_limits(self) -> list[Limit]:
        """Return every limit on memory, the leaf's first."""
        names = ["memory.max", "memory.high"] if self._is_v2 else ["memory.limit_in_bytes"]
        found: list[Limit] = []
        for folder in self._folders:
            limits = {name: self._bytes(f"{folder}/{name}") for name in names}
            if self._is_v2 and all(limit is None for limit in limits.values()):
                continue
            stat = self._reader.table(f"{folder}/memory.stat", [*self._cache, _INHERITED])
            limits[_INHERITED] = stat.pop(_INHERITED, None)
            usage, cache = self.usage(folder), sum(stat.values())
            for name, limit in limits.items():
                if limit is not None:
                    if limit == 0:
                        file = "memory.stat" if name == _INHERITED else name
                        self._reader.note("approximate", f"{folder}/{file} is 0: no memory is left")
                    source = f"{'cgroup2' if self._is_v2 else 'cgroup1'}:{name}"
                    found.append(Limit(limit, source, folder, usage, cache))
        # Version 1 also knows the limits of ancestors that are not visible from here. If they are,
        # it repeats them: name the group that really has the limit.
        return sorted(found, key=lambda limit: limit.source.endswith(_INHERITED))

    def is_killed_together(self, at: str | None = None) -> bool:
        """Return whether the OOM killer ends more than one process once a limit is reached.

        That is so if "memory.oom.group" is set of a group from the process' own up to the one
        whose limit it is, inclusive (cgroup-v2.rst; mem_cgroup_get_oom_group() of Linux).
        Kubernetes sets it from 1.28 on, and systemd with ``OOMPolicy=kill``.

        :param at: the folder of the group whose limit it is; ``None`` for the machine
        """
        folders = self._folders if self._is_v2 else []
        if at in folders:
            folders = folders[: folders.index(at) + 1]
        files = [f"{folder}/memory.oom.group" for folder in folders]
        return any((self._reader.text(file) or "").strip() == "1" for file in files)

    def throttling(self, folder: str) -> Throttling | None:
        """Return how a group is slowed down; ``None`` if it has no ``memory.high``.

        "memory.events" and "memory.pressure" (cgroup-v2.rst, accounting/psi.rst).
        """
        high = self._bytes(f"{folder}/memory.high") if self._is_v2 else None
        if high is None:
            return None
        times = self._reader.table(f"{folder}/memory.events", ["high"]).get("high", 0)
        text = self._reader.text(f"{folder}/memory.pressure") or ""
        pressure = re.search(r"^some avg10=([0-9]{1,3}\.[0-9]{2})", text, re.M)
        return Throttling(high, times, float(pressure[1]) if pressure else 100.0)

    def _counting(self, folders: list[str]) -> Iterator[str]:
        """Yield the groups of version 1 whose memory the process counts in.

        A group with ``use_hierarchy`` 0 does not count what is below it, nor do those above it
        (cgroup-v1/memory.rst, section 6; Linux 5.11 and newer have no such groups).
        """
        for number, folder in enumerate(folders):
            path = f"{folder}/memory.use_hierarchy"
            if number and (self._reader.text(path) or "").strip() == "0":
                self._reader.note("approximate", f"{path} is 0: ignoring the limits above it")
                return
            yield folder

    def usage(self, folder: str) -> int:
        """Return what a group holds, in bytes."""
        name = "memory.current" if self._is_v2 else "memory.usage_in_bytes"
        return self._bytes(f"{folder}/{name}") or 0

    def cache(self, folder: str) -> int:
        """Return how much of it is page cache, in bytes."""
        return sum(self._reader.table(f"{folder}/memory.stat", self._cache).values())

    def cpu_limits(self) -> Iterator[Limit]:
        """Yield every limit on CPU time, the leaf's first."""
        source = "cgroup2:cpu.max" if self._cpu_is_v2 else "cgroup1:cpu.cfs_quota_us"
        cpus_of = self._cpus_v2 if self._cpu_is_v2 else self._cpus_v1
        for folder in self._cpu_folders:
            if (cpus := cpus_of(folder)) is not None:
                yield Limit(cpus, source, folder)

    def oom_kills(self) -> int | None:
        """Return how many processes of this group the OOM killer has killed.

        The count of the process' own group (cgroup-v2.rst, "memory.events"; cgroup-v1/memory.rst,
        "memory.oom_control"), where it has none that of the first group above which has: it
        counts all below it, in version 2 alone. Without one, that of the machine (/proc/vmstat).
        """
        name = "memory.events" if self._is_v2 else "memory.oom_control"
        folders = self._folders if self._is_v2 else self._folders[:1]
        paths = [f"{folder}/{name}" for folder in folders] + ["/proc/vmstat"]
        # Once found it stays the same: the counts of two places cannot be compared.
        for path in [self._kills_at] if self._kills_at else paths:
            for count in self._reader.table(path, ["oom_kill"]).values():
                self._kills_at = path
                return count
        return None

    def _cpus_v2(self, folder: str) -> float | None:
        """Return quota / period of ``cpu.max``: "150000 100000", "max 100000"."""
        path = f"{folder}/cpu.max"
        words = (self._reader.text(path) or "").split()
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
        quota, period_text = whole_number(quota_text), self._reader.text(period_path)
        if not quota:
            self._reader.note("malformed", quota_path)
            return None
        if period_text is None:
            self._reader.note(
                "approximate", f"{period_path} is not available; assuming {_DEFAULT_PERIOD}"
            )
            return quota / _DEFAULT_PERIOD
        period = whole_number(period_text.strip())
        if not period:
            self._reader.note("malformed", period_path)
            return None
        return quota / period

    def _bytes(self, path: str) -> int | None:
        """Return the number in a file; ``None`` if there is none, such as "max"."""
        text = (self._reader.text(path) or "").strip()
        if text in ("", "max"):
            return None
        number = whole_number(text)
        if number is None:
            self._reader.note("malformed", path)
        return number
