"""CPUs and memory of this process: :func:`detect_resources`."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

from .cgroups import ControlGroups, Limit
from .files import Files, NotingReader
from .host import HostFacts

__all__ = ["Files", "HostFacts", "Resources", "detect_resources"]


@dataclass(frozen=True)
class Resources:
    """CPUs and memory that this process may use.

    :param cpus: CPUs, above 0; a quota can make it a fraction
    :param cpu_source: what set it: "host", "affinity", "cgroup2:cpu.max" or
        "cgroup1:cpu.cfs_quota_us"
    :param cpu_at: the folder of the control group that set it; ``None`` for the others
    :param memory_limit: memory this process may use in total, in bytes
    :param memory_available: memory available now, in bytes, at most ``memory_limit``
    :param memory_source: what set the limit: "host", "cgroup2:memory.max", "cgroup2:memory.high",
        "cgroup1:memory.limit_in_bytes" or "cgroup1:hierarchical_memory_limit"
    :param memory_at: the folder of the control group that set it; ``None`` for "host"
    :param notes: what could not be read or understood, as "class: detail"; the classes are
        "unreadable", "malformed" and "approximate"
    :param is_killed_together: whether the OOM killer ends all processes of a control group at once
        ("memory.oom.group")
    """

    cpus: float
    cpu_source: str
    cpu_at: str | None
    memory_limit: int
    memory_available: int
    memory_source: str
    memory_at: str | None
    notes: tuple[str, ...] = ()
    is_killed_together: bool = False


def detect_resources(host: HostFacts | None = None, files: Files | None = None) -> Resources:
    """Find out how many CPUs and how much memory this process may use.

    The lowest limit counts: of the machine, the affinity of the process, and every control
    group above it. Nothing is cached: the next call sees a changed limit.

    :param host: figures of the operating system; this machine's if left out
    :param files: where files are read; the real file system if left out
    :returns: the resources; the notes list what could not be read, nothing is raised
    """
    host = host or HostFacts.read()
    reader = NotingReader(files)
    cpus = [Limit(max(host.cpus, 1), "host", "")]
    limits = [Limit(host.memory_total, "host", "")]
    if host.affinity is not None and host.affinity > 0:
        cpus.append(Limit(host.affinity, "affinity", ""))
    is_killed_together = False
    if host.platform == "linux":
        groups = ControlGroups(reader)
        cpus += groups.cpu_limits()
        # A limit at or above what the machine has does not bind.
        limits += [limit for limit in groups.memory_limits() if limit.value < host.memory_total]
        # The kernel kills no process at memory.high.
        killing = [limit for limit in limits if not limit.is_throttling]
        nearest = min(killing, key=attrgetter("value"))
        is_killed_together = groups.is_killed_together(nearest.at or None)
    cpu, limit = (min(found, key=attrgetter("value")) for found in (cpus, limits))
    available = [max(int(item.value) - item.used, 0) for item in limits[1:]]
    return Resources(
        cpus=float(cpu.value),
        cpu_source=cpu.source,
        cpu_at=cpu.at or None,
        memory_limit=int(limit.value),
        memory_available=min([host.memory_available, host.memory_total, *available]),
        memory_source=limit.source,
        memory_at=limit.at or None,
        notes=(*host.notes, *reader.notes),
        is_killed_together=is_killed_together,
    )
