"""What holds memory beside the workers: real processes, listed by a group of the test's own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flask_workersize.resources.holders import Holders, read_holders
from tests.children import Children, Pipe, kill
from tests.plain import MB
from tests.servers.serving import await_that

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux'")

SLACK = 3 * MB


class Hog:
    """A process that holds memory until it is killed, perhaps in a child of its own."""

    def __init__(self, children: Children, size_mb: int, in_child: bool = False) -> None:
        told = Pipe()

        def hold() -> None:
            if in_child and (pid := os.fork()):
                told.tell(str(pid))
            else:
                # Its name is what it makes of it (prctl(2), PR_SET_NAME).
                ctypes.CDLL(None).prctl(15, b"ff\tmpeg (x)", 0, 0, 0)
                held = bytearray(b"x") * (size_mb * MB)
                told.tell("ready")
                assert held
            Pipe().hear()

        self.pid = children(hold)
        heard = {told.hear() for _ in range(1 + in_child)}
        self.child = next((int(word) for word in heard if word != "ready"), 0)


MakeHog = Callable[..., Hog]


@pytest.fixture
def hog(children: Children) -> Iterator[MakeHog]:
    """Start processes that hold memory, and end them and their children."""
    made: list[Hog] = []

    def make(size_mb: int, in_child: bool = False) -> Hog:
        made.append(Hog(children, size_mb, in_child))
        return made[-1]

    yield make
    for one in made:
        if one.child:
            os.kill(one.child, signal.SIGKILL)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """Return a folder like that of a control group, with one below."""
    (tmp_path / "below").mkdir()
    (tmp_path / "memory.stat").write_text(f"anon 1\nshmem {50 * MB}\nactive_file 99\n")
    return tmp_path


def enter(folder: Path, *pids: int) -> None:
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


def test_each_process_is_counted_where_it_comes_from(hog: MakeHog, group: Path) -> None:
    worker = hog(40, in_child=True)
    launcher = hog(20)
    enter(group, os.getpid(), launcher.pid, worker.pid, 0)
    enter(group / "below", worker.child)
    found = read_holders(str(group), launcher.pid, [worker.pid])
    assert found.shmem_bytes == 50 * MB
    assert found.started_bytes >= 40 * MB
    assert abs(found.launcher_bytes - 20 * MB) < SLACK
    assert found.others_bytes == 0


def test_process_that_was_started_and_left_alone_is_another(hog: MakeHog, group: Path) -> None:
    worker = hog(30, in_child=True)
    kill(worker.pid)
    await_that(lambda: psutil.Process(worker.child).ppid() != worker.pid, "left alone")
    enter(group, worker.child)
    found = read_holders(str(group), os.getpid(), [os.getpid()])
    assert found.others_bytes >= 30 * MB
    assert (found.started_bytes, found.launcher_bytes) == (0, 0)


def test_name_of_a_program_cannot_forge_a_line(hog: MakeHog, group: Path) -> None:
    other = hog(30)
    enter(group, other.pid)
    found = read_holders(str(group), os.getpid(), [])
    assert "such as ff?mpeg (x)): 3" in str(found)


def test_version_1_counts_groups_below_too(group: Path) -> None:
    (group / "memory.stat").write_text(f"shmem 1\ntotal_shmem {7 * MB}\n")
    assert read_holders(str(group), os.getpid(), []).shmem_bytes == 7 * MB


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.stat", f"kernel {9 * MB}\nslab 5\n"),
        ("memory.stat", f"slab {9 * MB}\n"),
        ("memory.kmem.usage_in_bytes", f"{9 * MB}\n"),
    ],
)
def test_what_the_kernel_holds_is_no_workers(group: Path, name: str, text: str) -> None:
    """Such as names of files that somebody has looked for."""
    (group / name).write_text(text)
    assert read_holders(str(group), os.getpid(), []).kernel_bytes == 9 * MB


def test_folder_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    found = read_holders(str(tmp_path / "gone"), os.getpid(), [os.getpid()])
    assert found == Holders()


def test_only_those_are_named_that_hold_much() -> None:
    found = Holders(
        shmem_bytes=80 * MB, started_bytes=30 * MB, launcher_bytes=5 * MB, started_name="ffmpeg"
    )
    assert str(found) == (
        "tmpfs and shared memory: 80 MB, processes that the app started (such as ffmpeg): 30 MB"
    )
