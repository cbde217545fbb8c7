"""Control groups of the tests' own, in whichever version this machine has."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.resources.machines import MB

ROOT = Path("/sys/fs/cgroup")
PERIOD = 100_000


@dataclass(frozen=True)
class RealGroup:
    """A group below which processes can be started; the same folder in version 2.

    :param memory: its folder in the hierarchy that has memory
    :param cpu: its folder in the hierarchy that has CPU time
    """

    memory: Path
    cpu: Path

    @property
    def is_v2(self) -> bool:
        """Whether it is of version 2."""
        return self.memory == self.cpu

    @property
    def folders(self) -> list[Path]:
        """Its folders, each once."""
        return [self.memory] if self.is_v2 else [self.memory, self.cpu]

    def limit_memory(self, size_mb: int) -> None:
        """Set its limit on memory."""
        name = "memory.max" if self.is_v2 else "memory.limit_in_bytes"
        (self.memory / name).write_text(str(size_mb * MB))

    def limit_cpus(self, cpus: float) -> None:
        """Set its quota of CPU time."""
        quota = int(cpus * PERIOD)
        if self.is_v2:
            (self.cpu / "cpu.max").write_text(f"{quota} {PERIOD}")
        else:
            (self.cpu / "cpu.cfs_period_us").write_text(str(PERIOD))
            (self.cpu / "cpu.cfs_quota_us").write_text(str(quota))

    @property
    def needed_mb(self) -> float:
        """What the kernel cannot drop without slowing the processes in it, in MB.

        Anonymous and shared memory, pages of files that are mapped, and the kernel's own for them.
        """
        text = (self.memory / "memory.stat").read_text()
        stat = {name: int(size) for name, size in map(str.split, text.splitlines())}
        if self.is_v2:
            size = stat["anon"] + stat["shmem"] + stat["file_mapped"] + stat["kernel"]
        else:
            size = stat["total_rss"] + stat["total_shmem"] + stat["total_mapped_file"]
            size += int((self.memory / "memory.kmem.usage_in_bytes").read_text())
        return size / MB

    def child(self, name: str) -> RealGroup:
        """Return a new group below this one."""
        if self.is_v2:
            (self.memory / "cgroup.subtree_control").write_text("+memory +cpu")
        child = RealGroup(self.memory / name, self.cpu / name)
        for folder in child.folders:
            folder.mkdir()
        return child

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command line that joins the group, then becomes the command."""
        joins = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in self.folders)
        return ["sh", "-c", f'{joins} && exec "$@"', "sh", *command]


def _top() -> RealGroup:
    """Return the group at the mount point.

    :raises OSError: if neither version is there with both controllers
    """
    for root in (ROOT, ROOT / "unified"):
        with suppress(FileNotFoundError):
            if {"memory", "cpu"} <= set((root / "cgroup.controllers").read_text().split()):
                return RealGroup(root, root)
    if (ROOT / "memory").is_dir() and (ROOT / "cpu").is_dir():
        return RealGroup(ROOT / "memory", ROOT / "cpu")
    raise FileNotFoundError(f"no control groups with memory and cpu under {ROOT}")


@contextmanager
def real_group() -> Iterator[RealGroup]:
    """Yield a group without limits; it and all below it are removed afterwards.

    :raises OSError: if this machine, or this user, cannot have one
    """
    top, name = _top(), f"workersize-{os.getpid()}-{time.monotonic_ns()}"
    try:
        yield top.child(name)
    finally:
        for point in top.folders:
            remove(point / name)


@contextmanager
def group_or_skip() -> Iterator[RealGroup]:
    """Yield a group, or skip the test with the reason."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("control groups can be made by root on Linux only")
    with ExitStack() as stack:
        try:
            group = stack.enter_context(real_group())
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        yield group


def remove(top: Path) -> None:
    """Remove a group and all below it, if there is one."""
    for folder, _, _ in os.walk(top, topdown=False):
        _remove(Path(folder))


def _remove(folder: Path) -> None:
    """Remove a group; processes that have just ended may be in it for a moment longer."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
