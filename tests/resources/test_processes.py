"""Facts of a process: its memory, and when it started."""

from __future__ import annotations

import mmap
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flask_workersize.resources.processes import (
    ProcessMemory,
    ResidentPeak,
    peak_resident_memory,
    process_memory,
    resident_memory,
    resident_peak,
    start_time,
)
from tests.children import Children, Pipe, await_end, status_of
from tests.plain import MB

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

pytestmark = forks


@pytest.fixture
def children() -> Iterator[Children]:
    """Fork processes, which are killed at the end."""
    with Children() as children:
        yield children


@pytest.fixture
def waiting(children: Children) -> Iterator[int]:
    """Return a child that is there until the end of the test."""
    with Pipe() as pipe:
        yield children(lambda: os.read(pipe.reader, 1))


@pytest.fixture
def ended(children: Children) -> int:
    """Return the id of a process that is gone."""
    pid = children(lambda: None)
    status_of(pid)
    return pid


@pytest.fixture
def zombie(children: Children) -> int:
    """Return a process that has ended, and that nobody has waited for."""
    pid = children(lambda: None)
    await_end(pid)
    return pid


# Memory


def test_memory_of_a_process_is_what_the_system_says() -> None:
    memory = process_memory(os.getpid())
    assert memory is not None
    assert memory.rss_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


@linux
def test_each_share_of_memory_is_within_the_larger_one(waiting: int) -> None:
    """Unique below proportional below resident: this child shares nearly all with its parent."""
    memory = process_memory(waiting)
    assert memory is not None
    assert memory.pss_bytes is not None
    assert memory.uss_bytes is not None
    assert 0 < memory.uss_bytes < memory.pss_bytes < memory.rss_bytes


def test_memory_of_another_process_is_told(waiting: int) -> None:
    memory = process_memory(waiting)
    resident = resident_memory(waiting)
    assert memory is not None
    assert resident is not None
    assert resident == pytest.approx(memory.rss_bytes, rel=0.1)


@linux
def test_pages_of_files_are_no_private_memory_and_are_told_beside_it(
    children: Children, tmp_path: Path
) -> None:
    """They stay in the page cache when the process ends; a page that it has written to does not."""
    file = tmp_path / "library"
    file.write_bytes(bytes(8 * MB))
    os.sync()
    if b"tmpfs" in subprocess.check_output(["stat", "-f", "-c", "%T", file]):
        pytest.skip("files of a tmpfs are memory")

    def read() -> None:
        before = process_memory(os.getpid())
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m:
            assert not any(m[:: mmap.PAGESIZE])
            written = bytearray(os.urandom(1)) * (4 * MB)
            after = process_memory(os.getpid())
            assert before is not None
            assert after is not None
            assert written
            assert (after.uss_bytes or 0) - (before.uss_bytes or 0) == pytest.approx(4 * MB, abs=MB)
            mapped = (after.mapped_bytes or 0) - (before.mapped_bytes or 0)
            assert mapped == pytest.approx(8 * MB, abs=MB)

    assert status_of(children(read)) == 0


def test_process_that_is_gone_has_no_memory(ended: int) -> None:
    assert process_memory(ended) is None
    assert resident_memory(ended) is None


@linux
def test_process_that_nobody_has_waited_for_has_no_memory(zombie: int) -> None:
    memory = process_memory(zombie)
    assert memory is None or memory.rss_bytes == 0


@linux
@pytest.mark.skipif(sys.platform != "win32" and os.geteuid() != 0, reason="only root can be others")
def test_resident_memory_is_told_where_the_rest_may_not_be_read(children: Children) -> None:
    """As where a worker is another user's: its pages are nobody else's business."""
    watched = os.getpid()

    def look() -> None:
        os.setuid(pwd.getpwnam("nobody").pw_uid)
        memory = process_memory(watched)
        assert memory is not None
        assert memory == ProcessMemory(memory.rss_bytes)
        assert memory.rss_bytes > 0

    assert status_of(children(look)) == 0


# When it started


def test_start_is_the_same_whenever_and_by_whomever_it_is_asked(children: Children) -> None:
    mine, parent = start_time(os.getpid()), os.getpid()
    assert mine > 0

    def look() -> None:
        assert start_time(parent) == mine

    assert status_of(children(look)) == 0
    assert start_time(parent) == mine


def test_child_starts_after_its_parent(waiting: int) -> None:
    assert start_time(waiting) > start_time(os.getpid())


def test_process_that_is_gone_has_no_start(ended: int) -> None:
    assert start_time(ended) == 0


@linux
def test_process_that_nobody_has_waited_for_keeps_its_start(zombie: int) -> None:
    """Its id is taken until then."""
    assert start_time(zombie) > 0


@linux
@pytest.mark.parametrize("name", ["a) b (c", ") 1 2 3", "((", "a\nb"])
def test_name_of_a_process_does_not_move_its_start(children: Children, name: str) -> None:
    """The name stands in the same line, in brackets, and may hold anything."""

    def rename() -> None:
        before = start_time(os.getpid())
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(name)
        with open("/proc/self/stat", encoding="ascii") as file:
            assert f"({name})" in file.read()
        assert start_time(os.getpid()) == before

    assert status_of(children(rename)) == 0


def test_what_was_swapped_out_is_held_and_not_given_back() -> None:
    """As the kernel writes it; "VmSwap" of a process without a swap is 0."""
    status = (
        b"Name:\tVmRSS: 9 kB\nVmPeak:\t  999 kB\nVmHWM:\t  500 kB\nVmRSS:\t  200 kB\n"
        b"RssAnon:\t  150 kB\nRssFile:\t   40 kB\nRssShmem:\t   10 kB\nVmSwap:\t  250 kB\n"
    )
    peak = resident_peak(status)
    assert peak == ResidentPeak(200 * 1024, 500 * 1024, 40 * 1024, 250 * 1024)
    assert peak.given_back_bytes == 50 * 1024
    assert resident_peak(b"Name:\tkthreadd\n") == ResidentPeak()


@linux
def test_resident_peak_of_this_process_is_known(ended: int) -> None:
    peak = peak_resident_memory(os.getpid())
    assert 0 < peak.file_bytes < peak.rss_bytes <= peak.most_bytes
    assert peak_resident_memory(ended) == ResidentPeak()
