"""Machines as plain values: their files, their figures, and golden cases of both."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask_workersize import HostFacts, Resources, detect_resources

MB = 1024 * 1024
GB = 1024 * MB
HOST = HostFacts(
    cpus=8, affinity=8, memory_total=16 * GB, memory_available=12 * GB, platform="linux"
)
ROOT = "/sys/fs/cgroup"
V1_UNLIMITED = 9223372036854771712
COPY = Path(__file__).parents[1] / "data" / "limits.json"


class FixtureFiles:
    """Files that are not on a disk; what is not named does not exist.

    :param texts: what is in them, by path
    :param unreadable: paths that may not be read
    """

    def __init__(self, texts: Mapping[str, str], unreadable: Collection[str] = ()) -> None:
        self.texts = dict(texts)
        self.unreadable = unreadable
        self.opened: list[str] = []

    def read_text(self, path: str) -> str:
        """Return a text as a real file system does, and keep what was asked for."""
        self.opened.append(path)
        if path in self.unreadable:
            raise PermissionError(path)
        if path not in self.texts:
            raise FileNotFoundError(path)
        return self.texts[path]

    def is_dir(self, path: str) -> bool:
        """Return whether a file is below the path."""
        return any(file.startswith(f"{path}/") for file in (*self.texts, *self.unreadable))


@dataclass(frozen=True)
class Case:
    """A machine, and what is to be found out about it.

    :param expect: attributes of the resources; ``notes`` are classes, sorted, without repeats
    """

    name: str
    files: Mapping[str, str]
    expect: Mapping[str, Any]
    unreadable: Collection[str] = ()
    host: HostFacts = field(default=HOST)

    def detect(self) -> Resources:
        """Detect the resources of this machine."""
        return detect_resources(self.host, FixtureFiles(self.files, self.unreadable))

    def found(self) -> dict[str, Any]:
        """Return what was found of that which is expected, in the same form."""
        return {name: told(self.detect())[name] for name in self.expect}


def told(resources: Resources) -> dict[str, Any]:
    """Return resources in the words of the golden cases."""
    return {
        **vars(resources),
        "notes": sorted({note.partition(":")[0] for note in resources.notes}),
        "workers_by_cpu": max(1, int(2 * resources.cpus) + 1),
    }


def golden_cases() -> list[Case]:
    """Return the golden cases of limits.json."""
    return [_golden(case) for case in json.loads(COPY.read_text(encoding="utf-8"))["cases"]]


def _golden(case: Mapping[str, Any]) -> Case:
    figures = case["host"]
    host = HostFacts(
        cpus=figures["cpus"],
        affinity=figures["affinity"],
        memory_total=figures["mem_total"],
        memory_available=figures["mem_available"],
        platform=case["platform"],
    )
    name = f"{case['id']} {case['group']}: {case['name']}"
    return Case(name, case["files"], case["expect"], case["unreadable"], host)


def mount(point: str, controllers: str = "", root: str = "/", optional: str = "shared:1 ") -> str:
    """Return a line of mountinfo; without controllers it is version 2."""
    kind = f"cgroup cgroup rw,{controllers}" if controllers else "cgroup2 cgroup2 rw,nsdelegate"
    return f"30 21 0:30 {root} {point} rw,nosuid,nodev {optional}- {kind}\n"


OTHER_MOUNTS = (
    "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "22 21 0:20 / /proc rw,nosuid - proc proc rw\n"
)

Limits = Mapping[str, Mapping[str, object]]


def texts(limits: Limits) -> dict[str, str]:
    """Return files by path, from files by folder and name."""
    return {
        f"{folder}/{name}": f"{value}\n"
        for folder, files in limits.items()
        for name, value in files.items()
    }


def v2(path: str, limits: Limits, *mounts: str) -> dict[str, str]:
    """Return the files of a machine with version 2 alone.

    :param path: the group of the process
    :param limits: contents of files by folder, below the usual mount point, and name
    :param mounts: lines of mountinfo, in place of the usual one
    """
    return {
        "/proc/self/cgroup": f"0::{path}\n",
        "/proc/self/mountinfo": OTHER_MOUNTS + ("".join(mounts) or mount(ROOT)),
        **texts({f"{ROOT}{folder}": files for folder, files in limits.items()}),
        **({} if mounts else _leaf(ROOT, path)),
    }


def v1(
    path: str, memory: Limits | None = None, cpu: Limits | None = None, root: str = "/"
) -> dict[str, str]:
    """Return the files of a machine with version 1 alone, as most such systems mount it.

    :param path: the group of the process, in every hierarchy
    :param memory: contents of files by folder, below the mount point, and name
    :param cpu: likewise
    :param root: the group that is to be seen at the mount points
    """
    memory_point, cpu_point = f"{ROOT}/memory", f"{ROOT}/cpu,cpuacct"
    return {
        "/proc/self/cgroup": f"4:memory:{path}\n3:cpu,cpuacct:{path}\n1:name=systemd:{path}\n",
        "/proc/self/mountinfo": OTHER_MOUNTS
        + mount(memory_point, "memory", root)
        + mount(cpu_point, "cpu,cpuacct", root)
        + mount(f"{ROOT}/systemd", "name=systemd", root),
        **texts({f"{memory_point}{folder}": files for folder, files in (memory or {}).items()}),
        **texts({f"{cpu_point}{folder}": files for folder, files in (cpu or {}).items()}),
        **_leaf(memory_point, path, root),
        **_leaf(cpu_point, path, root),
    }


def _leaf(point: str, path: str, root: str = "/") -> dict[str, str]:
    """Return a file of the group of the process: it is there, unless it was deleted."""
    inside = path.removeprefix(root.rstrip("/"))
    is_seen = path.startswith(root) and ".." not in path and not path.endswith(" (deleted)")
    return {f"{point}{inside.rstrip('/')}/cgroup.procs": "1\n"} if is_seen else {}


def cfs(quota: object, period: object = 100_000) -> dict[str, object]:
    """Return the two files of a quota of version 1."""
    return {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period}
