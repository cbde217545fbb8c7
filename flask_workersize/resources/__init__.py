"""What the machine gives: :func:`detect_resources`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .host import HostFacts

__all__ = ["Files", "HostFacts", "Resources", "detect_resources"]


class Files(Protocol):
    """Where files are read; tests hand in a mapping instead of the real file system."""

    def read_text(self, path: str) -> str:
        """Return the text of a file.

        :raises OSError: if there is no such file, or it may not be read
        """

    def is_dir(self, path: str) -> bool:
        """Return whether the path is a folder."""


class RealFiles:
    """The file system of this machine."""

    def read_text(self, path: str) -> str:
        """Return the text of a file; bytes that are no UTF-8 are replaced."""
        return Path(path).read_text(encoding="utf-8", errors="replace")

    def is_dir(self, path: str) -> bool:
        """Return whether the path is a folder."""
        return Path(path).is_dir()


@dataclass(frozen=True)
class Resources:
    """What the machine gives to this process.

    :param cpus: CPUs, above 0; a quota can make it a fraction
    :param cpu_source: what set it: "host" or "affinity"
    :param cpu_at: the file that set it; ``None`` for a figure of the operating system
    :param memory_limit: memory this process may use in all, in bytes
    :param memory_available: memory that can be had now, in bytes, at most ``memory_limit``
    :param memory_source: what set the limit: "host"
    :param memory_at: the file that set it; ``None`` for a figure of the operating system
    :param notes: what could not be read, as "class: detail"
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

    :param host: figures of the operating system; this machine's where left out
    :param files: where files are read; the real file system where left out
    :returns: the least of what each source allows
    """
    host = HostFacts.read() if host is None else host
    files = RealFiles() if files is None else files
    cpus, cpu_source = host.cpus, "host"
    if host.affinity is not None and host.affinity < cpus:
        cpus, cpu_source = host.affinity, "affinity"
    return Resources(
        cpus=float(max(cpus, 1)),
        cpu_source=cpu_source,
        cpu_at=None,
        memory_limit=host.memory_total,
        memory_available=min(host.memory_available, host.memory_total),
        memory_source="host",
        memory_at=None,
    )
