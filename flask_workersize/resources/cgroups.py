"""Limits of control groups, versions 1 and 2, also both at once.

A process is in one group of each hierarchy, and a group is a folder. Every folder from the process'
own (the leaf) up to where the hierarchy is mounted can hold a limit, and all of them apply: the
tightest binds. So there are three steps for each controller, "memory" and "cpu":

1. ``/proc/self/cgroup`` says which version has the controller, and the path of the group in it;
2. ``/proc/self/mountinfo`` says at which folder that hierarchy is mounted, and from which path on;
3. walk from the group's folder to that mount point, inclusive, and read the limits of each.

Sources: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst,
Documentation/scheduler/sched-bwc.rst; cgroups(7), cgroup_namespaces(7), proc_pid_mountinfo(5).

What is missing is skipped. What cannot be read or understood is skipped with a note. Weights,
shares, protections (low, min, soft limits) and swap limit nothing: they are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from .files import Files

Controller = Literal["cpu", "memory"]

_DEFAULT_MOUNT = "/sys/fs/cgroup"
_DEFAULT_PERIOD = 100_000
"""Microseconds; what the kernel takes where ``cpu.max`` was written without a period."""


@dataclass(frozen=True)
class Limit:
    """A limit that applies to this process.

    :param value: bytes for memory, CPUs (quota / period) for cpu
    :param source: version and file, "cgroup2:memory.max"
    :param at: the folder of the group that has it
    :param used: bytes of this group that cannot be had without swapping (its working set); 0 for
        cpu and where it cannot be read
    """

    value: float
    source: str
    at: str
    used: int = 0


@dataclass(frozen=True)
class _Mount:
    """A mounted hierarchy: the part of it below ``root`` is to be seen at ``point``."""

    root: str
    point: str
    is_v2: bool
    controllers: frozenset[str]

    def chain(self, path: str) -> list[str] | None:
        """Return the folders of a group and its ancestors; ``None`` if it is not below root."""
        below = path.removeprefix(self.root.rstrip("/"))
        if ".." in path.split("/") or (below == path and self.root != "/"):
            return None
        if below and not below.startswith("/"):
            return None
        names = [name for name in below.split("/") if name]
        point = self.point.rstrip("/")
        return ["/".join([point, *names[:depth]]) for depth in range(len(names), -1, -1)]


class ControlGroups:
    """Reads the limits that apply to this process, and notes what it could not read.

    :param files: where files are read
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._notes: dict[str, None] = {}
        self._memberships = self._read_memberships()
        self._mounts = self._read_mounts()

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be read or understood, as "class: detail", without repeats."""
        return tuple(self._notes)

    def memory_limits(self) -> Iterator[Limit]:
        """Yield every limit on memory, the leaf's first."""
        is_v2, folders = self._locate("memory")
        yield from self._memory_v2(folders) if is_v2 else self._memory_v1(folders)

    def cpu_limits(self) -> Iterator[Limit]:
        """Yield every limit on CPU time, the leaf's first."""
        is_v2, folders = self._locate("cpu")
        source = "cgroup2:cpu.max" if is_v2 else "cgroup1:cpu.cfs_quota_us"
        for folder in folders:
            cpus = self._cpus_v2(folder) if is_v2 else self._cpus_v1(folder)
            if cpus is not None:
                yield Limit(cpus, source, folder)

    def _memory_v2(self, folders: Iterable[str]) -> Iterator[Limit]:
        for folder in folders:
            limits = {
                name: limit
                for name in ("memory.max", "memory.high")
                if (limit := self._bytes(f"{folder}/{name}")) is not None
            }
            if limits:
                used = self._working_set(folder, "memory.current", "inactive_file")
                for name, limit in limits.items():
                    yield Limit(limit, f"cgroup2:{name}", folder, used)

    def _memory_v1(self, folders: Iterable[str]) -> Iterator[Limit]:
        # memory.stat also knows the limits of ancestors that are not to be seen from here. Where
        # they are, it repeats them: the group that really has the limit is to be named.
        inherited: list[Limit] = []
        for folder in folders:
            own = self._bytes(f"{folder}/memory.limit_in_bytes")
            stat = self._statistics(f"{folder}/memory.stat")
            hierarchical = stat.get("hierarchical_memory_limit")
            if own is None and hierarchical is None:
                continue
            used = self._working_set(folder, "memory.usage_in_bytes", "total_inactive_file")
            if own is not None:
                yield Limit(own, "cgroup1:memory.limit_in_bytes", folder, used)
            if hierarchical is not None:
                source = "cgroup1:hierarchical_memory_limit"
                inherited.append(Limit(hierarchical, source, folder, used))
        yield from inherited

    def _cpus_v2(self, folder: str) -> float | None:
        path = f"{folder}/cpu.max"
        words = self._read(path).split()
        if not words or words[0] == "max":
            return None
        quota, period = _number(words[0]), _DEFAULT_PERIOD
        if len(words) > 1:
            period = _number(words[1]) or 0
        if not quota or not period or len(words) > 2:
            self._note("malformed", path)
            return None
        return quota / period

    def _cpus_v1(self, folder: str) -> float | None:
        quota_path, period_path = f"{folder}/cpu.cfs_quota_us", f"{folder}/cpu.cfs_period_us"
        quota_text = self._read(quota_path).strip()
        if not quota_text or quota_text == "0" or re.fullmatch(r"-[0-9]+", quota_text):
            return None
        period_text = self._read(period_path).strip()
        quota, period = _number(quota_text), _number(period_text)
        if quota and period:
            return quota / period
        if not quota:
            self._note("malformed", quota_path)
        elif period_text:
            self._note("malformed", period_path)
        return None

    def _working_set(self, folder: str, usage_name: str, cache_name: str) -> int:
        """Return usage less the page cache that the kernel drops first, as kubelet counts it."""
        usage = self._bytes(f"{folder}/{usage_name}") or 0
        cache = self._statistics(f"{folder}/memory.stat").get(cache_name, 0)
        return max(usage - cache, 0)

    def _bytes(self, path: str) -> int | None:
        text = self._read(path).strip()
        if not text or text == "max":
            return None
        number = _number(text)
        if number is None:
            self._note("malformed", path)
        return number

    def _statistics(self, path: str) -> dict[str, int]:
        numbers = {}
        for line in self._read(path).splitlines():
            name, _, text = line.partition(" ")
            if name in _STATISTICS:
                number = _number(text.strip())
                if number is None:
                    self._note("malformed", path)
                else:
                    numbers[name] = number
        return numbers

    def _locate(self, controller: Controller) -> tuple[bool, list[str]]:
        """Return whether version 2 has the controller, and the folders from leaf to mount point."""
        v1_mounts = [mount for mount in self._mounts if controller in mount.controllers]
        # Version 1 names the controllers it has; version 2 has whatever version 1 has not.
        is_v2 = controller not in self._memberships if self._memberships else not v1_mounts
        path = self._memberships.get("" if is_v2 else controller)
        if path is None and self._memberships:
            return is_v2, []
        mounts = [mount for mount in self._mounts if mount.is_v2] if is_v2 else v1_mounts
        # The same hierarchy can be mounted twice; the usual place comes first.
        mounts.sort(key=lambda mount: not f"{mount.point}/".startswith(f"{_DEFAULT_MOUNT}/"))
        for mount in mounts:
            if path is not None and (folders := mount.chain(path)) is not None:
                return is_v2, folders
        if not mounts:
            return is_v2, []
        # The group is not known, or not to be seen: what limits the whole container still does.
        self._note("approximate", f"{mounts[0].point} stands for the group of this process")
        return is_v2, [mounts[0].point]

    def _read_memberships(self) -> dict[str, str]:
        """Return the path of this process' group by controller, with "" for version 2."""
        paths: dict[str, str] = {}
        source = "/proc/self/cgroup"
        for line in self._read(source).splitlines():
            number, controllers, path = [*line.split(":", 2), "", ""][:3]
            if not path.startswith("/"):
                self._note("malformed", source)
            elif number == "0" and not controllers:
                paths[""] = path
            else:
                paths |= dict.fromkeys(filter(None, controllers.split(",")), path)
        return paths

    def _read_mounts(self) -> list[_Mount]:
        source = "/proc/self/mountinfo"
        try:
            text = self._files.read_text(source)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._note("unreadable", source)
            return self._guess_mounts()
        mounts = []
        for line in text.splitlines():
            before, separator, after = line.partition(" - ")
            fields, types = before.split(" "), after.split(" ")
            if not separator or len(fields) < 6 or len(types) < 3:
                self._note("malformed", source)
            elif types[0] in ("cgroup", "cgroup2"):
                root, point = _unescape(fields[3]), _unescape(fields[4])
                is_v2 = types[0] == "cgroup2"
                controllers = frozenset(() if is_v2 else types[-1].split(","))
                mounts.append(_Mount(root, point, is_v2, controllers))
        return mounts

    def _guess_mounts(self) -> list[_Mount]:
        """Return the mounts that most systems have, for want of the list."""
        mounts = [
            _Mount("/", _DEFAULT_MOUNT, True, frozenset()),
            _Mount("/", f"{_DEFAULT_MOUNT}/memory", False, frozenset(["memory"])),
            _Mount("/", f"{_DEFAULT_MOUNT}/cpu", False, frozenset(["cpu"])),
        ]
        found = [mount for mount in mounts if self._files.is_dir(mount.point)]
        if found:
            self._note("approximate", f"{_DEFAULT_MOUNT} is taken for the mount point")
        return found

    def _read(self, path: str) -> str:
        """Return the text of a file; "" where it is missing, and, with a note, unreadable."""
        try:
            return self._files.read_text(path)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, ValueError):
            self._note("unreadable", path)
            return ""

    def _note(self, kind: str, detail: str) -> None:
        self._notes[f"{kind}: {detail}"] = None


_STATISTICS = frozenset({"hierarchical_memory_limit", "inactive_file", "total_inactive_file"})


def _number(text: str) -> int | None:
    """Return a number as the kernel writes it: ASCII digits, at most 20 for 64 bits."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None


def _unescape(text: str) -> str:
    r"""Undo what mountinfo does to spaces and the like: ``\040`` (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
