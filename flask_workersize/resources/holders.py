"""What holds the memory of a control group beside the workers of this server.

Read only if memory is short: it reads every process of the group.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import psutil

from ..errors import printable
from .files import NotingReader, whole_number
from .processes import held_memory, private_memory

_MB = 1024 * 1024

_MOST_PROCESSES = 2000
_MOST_MEASURED = 5
"""Processes whose private memory is counted page by page, the largest first."""

_LEAST_SHARE = 0.2
"""Share of the whole from which a holder is named."""


@dataclass(frozen=True)
class Holders:
    """Memory that no worker holds, in bytes; page cache is not in it, which the kernel can drop."""

    shmem_bytes: int = 0
    """Files of a tmpfs, and memory that processes share (memory.stat, "shmem")."""

    started_bytes: int = 0
    """Processes that the app or the server has started, except workers."""

    others_bytes: int = 0
    """All other processes of the group, those that were started and left alone included."""

    launcher_bytes: int = 0
    """The launcher's own."""

    kernel_bytes: int = 0
    """What the kernel holds for the group, such as names of files: most of it can be dropped."""

    started_name: str = ""
    other_name: str = ""
    """The largest of them."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return sum(getattr(self, name) for name in _SIZES)

    def within(self, most_bytes: int) -> Holders:
        """Return the same, scaled down to what there can be: forked processes share memory."""
        share = min(most_bytes / max(self.total_bytes, 1), 1)
        scaled: dict[str, Any] = {name: int(getattr(self, name) * share) for name in _SIZES}
        return replace(self, **scaled)

    def __str__(self) -> str:
        """Return what holds most, as "tmpfs and shared memory (120 MB)"."""
        named = {
            "tmpfs and shared memory": self.shmem_bytes,
            f"processes that the app started{_such_as(self.started_name)}": self.started_bytes,
            f"other processes{_such_as(self.other_name)}": self.others_bytes,
            "the launcher": self.launcher_bytes,
            "kernel memory": self.kernel_bytes,
        }
        found = sorted(named.items(), key=lambda item: -item[1])
        least = max(_LEAST_SHARE * self.total_bytes, 1)
        return ", ".join(f"{what}: {size // _MB} MB" for what, size in found if size >= least)


_STAT = ("shmem", "total_shmem", "kernel", "slab")
_SIZES = ("shmem_bytes", "started_bytes", "others_bytes", "launcher_bytes", "kernel_bytes")

NO_HOLDERS = Holders()


def read_holders(folder: str, launcher: int, workers: Collection[int]) -> Holders:
    """Return what holds the memory of a control group beside these workers.

    :param folder: the folder of the group
    :param launcher: the process of the launcher; of a server of one process that of its worker
    :param workers: the processes of the workers
    """
    parents = {pid: parent for pid in _processes(folder) if (parent := _parent(pid)) is not None}
    ours = {launcher, os.getpid(), *workers}
    found = sorted(((held_memory(pid), pid) for pid in parents if pid not in ours), reverse=True)
    # A process that was forked without a new program shares memory with its parent.
    largest = [
        (min(held, private_memory(pid) or held), pid) for held, pid in found[:_MOST_MEASURED]
    ]
    held_by = [*largest, *found[_MOST_MEASURED:]]
    is_started = {pid: bool(ours.intersection(_ancestors(pid, parents))) for _, pid in held_by}
    started = [item for item in held_by if is_started[item[1]]]
    others = [item for item in held_by if not is_started[item[1]]]
    stat = NotingReader().table(f"{folder}/memory.stat", _STAT)
    launcher_held = held_memory(launcher)
    # Only root can read the private memory of a process that has changed its user.
    launcher_held = min(launcher_held, private_memory(launcher) or launcher_held)
    return Holders(
        shmem_bytes=stat.get("total_shmem", stat.get("shmem", 0)),
        kernel_bytes=stat.get("kernel", stat.get("slab", 0)) or _kernel_v1(folder),
        started_bytes=sum(held for held, _ in started),
        others_bytes=sum(held for held, _ in others),
        launcher_bytes=0 if launcher in workers else launcher_held,
        started_name=_largest(started),
        other_name=_largest(others),
    )


def _kernel_v1(folder: str) -> int:
    text = NotingReader().text(f"{folder}/memory.kmem.usage_in_bytes") or ""
    return whole_number(text.strip()) or 0


def _processes(folder: str) -> list[int]:
    """Return the processes of a group and of all below it; those outside of our view are 0."""
    reader = NotingReader()
    texts = (reader.text(f"{below}/cgroup.procs") or "" for below, _, _ in os.walk(folder))
    pids = (whole_number(line) for text in texts for line in text.split())
    return list(islice((pid for pid in pids if pid), _MOST_PROCESSES))


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    # A process that ends can give its number to another: bound the chain by their count.
    for _ in range(len(parents)):
        if (parent := parents.get(pid)) is None:
            return
        yield parent
        pid = parent


def _parent(pid: int) -> int | None:
    """Return the process that has started another; ``None`` if that is gone."""
    try:
        return psutil.Process(pid).ppid()
    except (psutil.Error, OSError):
        return None


def _largest(found: list[tuple[int, int]]) -> str:
    """Return the name of the largest process, whatever characters its program has made that of."""
    try:
        return printable(psutil.Process(max(found)[1]).name()) if found else ""
    except (psutil.Error, OSError):
        return ""


def _such_as(name: str) -> str:
    return f" (such as {name})" if name else ""
