"""What the machine gives: :func:`detect_resources`."""

from __future__ import annotations

from dataclasses import dataclass

from .cgroups import ControlGroups, Limit
from .files import Files, RealFiles
from .host import HostFacts

__all__ = ["Files", "HostFacts", "Resources", "detect_resources"]


@dataclass(frozen=True)
class Resources:
    """What the machine gives to this process.

    :param cpus: CPUs, above 0; a quota can make it a fraction
    :param cpu_source: what set it: "host", "affinity", "cgroup2:cpu.max" or
        "cgroup1:cpu.cfs_quota_us"
    :param cpu_at: the folder of the control group that set it; ``None`` for the others
    :param memory_limit: memory this process may use in all, in bytes
    :param memory_available: memory that can be had now, in bytes, at most ``memory_limit``
    :param memory_source: what set the limit: "host", "cgroup2:memory.max", "cgroup2:memory.high",
        "cgroup1:memory.limit_in_bytes" or "cgroup1:hierarchical_memory_limit"
    :param memory_at: the folder of the control group that set it; ``None`` for "host"
    :param notes: what could not be read or understood, as "class: detail"; the classes are
        "unreadable", "malformed" and "approximate"
    """

    cpus: float
    cpu_source: str
    cpu_at: str | None
    memory_limit: int
    memory_available: int
    memory_source: str
    memory_at: str | None
    notes: tuple[str, ...] = ()


def detect_resources(host: HostFacts | None = None, files: Files | None = None) -> Resources:
    """Find out how many CPUs and how much memory this process may use.

    The least of what the machine has, the affinity of the process and every control group above
    it allow. Nothing is kept: a limit that has changed is seen by the next call.

    :param host: figures of the operating system; this machine's where left out
    :param files: where files are read; the real file system where left out
    :returns: the resources; what could not be read is in their notes, nothing is raised
    """
    host = HostFacts.read() if host is None else host
    if host.platform != "linux":
        return _least(host, [], [], ())
    groups = ControlGroups(RealFiles() if files is None else files)
    cpu, memory = list(groups.cpu_limits()), list(groups.memory_limits())
    return _least(host, cpu, memory, groups.notes)


def _least(
    host: HostFacts, cpu: list[Limit], memory: list[Limit], notes: tuple[str, ...]
) -> Resources:
    """Choose what binds: a limit at or above what the machine has does not."""
    cpus = Limit(max(host.cpus, 1), "host", "")
    if host.affinity is not None and 0 < host.affinity < cpus.value:
        cpus = Limit(host.affinity, "affinity", "")
    cpus = min([cpus, *cpu], key=_value)
    binding = [limit for limit in memory if limit.value < host.memory_total]
    limit = min([Limit(host.memory_total, "host", ""), *binding], key=_value)
    available = [max(int(item.value) - item.used, 0) for item in binding]
    return Resources(
        cpus=float(cpus.value),
        cpu_source=cpus.source,
        cpu_at=cpus.at or None,
        memory_limit=int(limit.value),
        memory_available=min([host.memory_available, host.memory_total, *available]),
        memory_source=limit.source,
        memory_at=limit.at or None,
        notes=notes,
    )


def _value(limit: Limit) -> float:
    return limit.value
