"""In real control groups: what no worker holds costs no worker, and is called by its name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.resources.machines import MB
from tests.resources.real_groups import RealGroup, group_or_skip
from tests.servers.serving import Server, Starter, await_that, serve_prod, starter
from tests.servers.test_memory_guard import APP, BEARER, ON, oom_kills

LIMIT_MB = 256
HOLD = (
    "import sys, time; held = b'x' * (int(sys.argv[1]) * 1048576); print(1); "
    "time.sleep(float(sys.argv[2]))"
)
SHM = Path("/dev/shm")


@pytest.fixture(scope="module")
def group() -> Iterator[RealGroup]:
    """Make a group, or skip the tests with the reason."""
    with group_or_skip() as group:
        group.limit_memory(LIMIT_MB)
        yield group


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, group: RealGroup) -> Iterator[Starter]:
    """Start servers, and end them before the group is removed."""
    with starter(tmp_path_factory.mktemp("holders")) as start:
        yield start


def cold_file(folder: Path, size_mb: int) -> Path:
    """Return a file on a disk of which nothing is in memory."""
    path = folder / f"{size_mb}-mb"
    with path.open("wb") as file:
        for _ in range(size_mb):
            file.write(bytes(MB))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.fixture(scope="module")
def order(start: Starter) -> Path:
    """Return the file that tells the launcher how much to hold."""
    return start.folder / "order"


@pytest.fixture(scope="module")
def server(start: Starter, group: RealGroup, order: Path) -> Server:
    """Start four workers of some MB that all tests share."""
    command = serve_prod("--wsgi-server", "gunicorn", "--workers", "4", app=APP)
    environ = {**ON, "LAUNCHER_HOLDS": str(order)}
    return start(group.command(command), None, **environ).await_ready()


def used_mb(server: Server) -> int:
    told: dict[str, Any] = server.live_report(BEARER)
    return int(told["memory_used_mb"])


@contextmanager
def nothing_lost(server: Server) -> Iterator[Callable[[], list[str]]]:
    """Hold a step to what has to be so in each; give its log lines about memory."""
    before, pids = len(server.stderr), server.booted_pids
    kills = server.live_report(BEARER)["crashed"]

    def said() -> list[str]:
        return re.findall(r"(?:memory: |OOM).*", server.stderr[before:])

    yield said
    told = server.live_report(BEARER)
    assert told["workers_wanted"] == told["workers_alive"] == 4
    assert (told["recycled"], told["crashed"]) == (0, kills)
    assert server.booted_pids == pids
    for line in said():
        assert not re.search(r"removing|recycl|too large|NOW_LMS_WORKERS", line, re.I), line
    await_that(lambda: used_mb(server) < 100, "memory is free again")


@contextmanager
def neighbour(group: RealGroup, size_mb: int, seconds: float = 60) -> Iterator[int]:
    """Have a process in the group that no server has started, and that holds so much."""
    command = group.command([sys.executable, "-c", HOLD, str(size_mb), str(seconds)])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def held_mb(line: str, what: str) -> int:
    """Return how much a line says that something holds, which it names first.

    It may have taken some more since.
    """
    found = re.search(rf"Not held by (?:the workers|this server), but by {what}: (\d+) MB", line)
    assert found, line
    return int(found[1])


def planned(start: Starter, group: RealGroup) -> str:
    """Return what a start in the group would plan."""
    command = serve_prod("--wsgi-server", "gunicorn", "--dry-run", app=APP)
    done = start.run(group.command(command), None, **ON, NOW_LMS_WORKER_MEMORY_MB="40")
    assert done.status == 0, done.stderr
    found = re.search(r"workers\W+(\d+)", done.stdout, re.I)
    assert found, done.stdout
    return found[1]


def test_page_cache_is_no_shortage_and_a_second_start_plans_as_many(
    server: Server, start: Starter, group: RealGroup
) -> None:
    """Read twice, it is active; in a circle, the kernel has dropped what is read next."""
    before = planned(start, group)
    with nothing_lost(server) as said:
        server.get(f"/read?times=3&file={cold_file(start.folder, 120)}")
        assert cached_mb(group, "active_file") > 80
        assert planned(start, group) == before
        server.get(f"/read?times=3&file={cold_file(start.folder, 300)}")
        assert cached_mb(group, "active_file") + cached_mb(group, "inactive_file") > 130
        time.sleep(0.5)
        assert planned(start, group) == before
        assert said() == []


def cached_mb(group: RealGroup, what: str) -> int:
    found = re.search(rf"^{what} (\d+)$", (group.memory / "memory.stat").read_text(), re.M)
    assert found
    return int(found[1]) // MB


def test_tmpfs_is_named(server: Server) -> None:
    path = SHM / f"workersize-{server.pid}"
    with nothing_lost(server) as said:
        try:
            server.get(f"/write?mb=165&file={path}")
            await_that(lambda: said() != [], "said")
            time.sleep(0.5)
        finally:
            path.unlink(missing_ok=True)
        (line,) = said()
        assert 120 <= held_mb(line, "tmpfs and shared memory") <= 175


def test_child_that_fits_is_no_news_and_one_that_does_not_is_one_line(
    server: Server, group: RealGroup
) -> None:
    with nothing_lost(server) as said:
        assert server.get("/child?mb=130&seconds=1").json() == {"status": 0}
        assert said() == []
        kills = oom_kills(group)
        assert server.get("/child?mb=400&seconds=0").json() == {"status": -9}
        assert oom_kills(group) == kills + 1
        server.wait_for_line("than a worker was OOM-killed")
        *others, line = said()
        assert line.startswith("memory: a process other than a worker was OOM-kill")
        assert len(others) <= 1
        for other in others:
            held_mb(other, r"processes that the app started \(such as python\S*\)")


def test_neighbour_is_named(server: Server, group: RealGroup) -> None:
    with nothing_lost(server) as said:
        with neighbour(group, 165):
            await_that(lambda: said() != [], "said")
            time.sleep(0.5)
        # Once a minute: on a slow machine the neighbour may take as long to end.
        line, *later = said()
        assert 120 <= held_mb(line, r"other processes \(such as python\S*\)") <= 180
        assert len(later) <= 1


def test_launcher_is_named(server: Server, order: Path) -> None:
    with nothing_lost(server) as said:
        order.write_text("165")
        await_that(lambda: said() != [], "said")
        time.sleep(0.5)
        order.unlink()
        (line,) = said()
        assert 120 <= held_mb(line, "the launcher") <= 200


def test_waitress_beside_a_neighbour_stays_and_names_it(
    start: Starter, server: Server, group: RealGroup
) -> None:
    """Though it was asked to end before the kernel ends it."""
    assert server.stop() == 0
    command = group.command(serve_prod("--wsgi-server", "waitress", app=APP))
    alone = start(command, None, **ON, NOW_LMS_MEMORY_GUARD="exit").await_ready()
    for _ in range(60):
        alone.get("/leak?mb=0.3")
    with neighbour(group, LIMIT_MB - 12 - used_mb(alone)):
        alone.wait_for_line("Not held by this server")
        time.sleep(0.5)
        assert alone.probe("/ready").status == 200
        assert alone.process.poll() is None
    line, *later = re.findall(r"Warning: memory: .*", alone.stderr)
    assert held_mb(line, r"other processes \(such as python\S*\)") > 100
    assert len(later) <= 1
    assert alone.stop() == 0
