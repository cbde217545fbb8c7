"""In control groups of its own, on this machine: the plan follows the limits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.resources.machines import MB
from tests.resources.real_groups import RealGroup, group_or_skip
from tests.servers.serving import Starter, flask, serve_prod, starter

CPUS = 1.5 if (psutil.cpu_count() or 1) > 1 else 0.5
CPU_BOUND = int(2 * CPUS) + 1
LIMIT_MB = 512
WORKER_MB = 150


@pytest.fixture
def group() -> Iterator[RealGroup]:
    """Make a group, or skip the test with the reason."""
    with group_or_skip() as group:
        yield group


@pytest.fixture
def start(tmp_path: Path, group: RealGroup) -> Iterator[Starter]:
    """Start servers, and end them before the group is removed."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture(params=["leaf", "parent"])
def limited(request: pytest.FixtureRequest, group: RealGroup) -> tuple[RealGroup, RealGroup]:
    """Return the group that has the limits, and the one to start in: the same, or one below."""
    group.limit_memory(LIMIT_MB)
    group.limit_cpus(CPUS)
    return group, group if request.param == "leaf" else group.child("below")


def check_found(resources: dict[str, Any], group: RealGroup) -> None:
    """Hold what was found to the limits of the group, named as where they are."""
    assert (resources["cpus"], resources["cpu_at"]) == (CPUS, str(group.cpu))
    assert (resources["memory_limit"], resources["memory_at"]) == (LIMIT_MB * MB, str(group.memory))
    assert 0 < resources["memory_available"] < LIMIT_MB * MB
    assert resources["notes"] == []


def test_plan_follows_the_limits_and_names_the_group(
    start: Starter, limited: tuple[RealGroup, RealGroup]
) -> None:
    binding, own = limited
    command = flask("workersize", "plan", "--server", "gunicorn", "--json")
    done = start.run(own.command(command), WORKER_MEMORY_MB=str(WORKER_MB))
    assert (done.status, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    check_found(told["resources"], binding)
    available_mb = told["resources"]["memory_available"] // MB
    assert told["plan"]["memory_available_mb"] == available_mb
    assert told["plan"]["cpu_bound"] == CPU_BOUND
    assert told["plan"]["memory_bound"] == available_mb // WORKER_MB
    assert told["plan"]["workers"] == min(CPU_BOUND, available_mb // WORKER_MB)


def test_dry_run_shows_the_file_of_each_limit(
    start: Starter, limited: tuple[RealGroup, RealGroup]
) -> None:
    binding, own = limited
    done = start.run(own.command(serve_prod("--dry-run", server="gunicorn")))
    assert (done.status, done.stderr) == (0, "")
    rows = {line.split("  ")[1]: line for line in done.stdout.splitlines() if line[:2] == "  "}
    assert rows["CPUs"].split()[1] == f"{CPUS:g}"
    assert rows["memory limit"].split()[2:4] == [f"{LIMIT_MB}", "MB"]
    names = ("cpu.max", "memory.max")
    if not binding.is_v2:
        names = ("cpu.cfs_quota_us", "memory.limit_in_bytes")
    assert rows["CPUs"].endswith(f"  {binding.cpu}/{names[0]}")
    assert rows["memory limit"].endswith(f"  {binding.memory}/{names[1]}")
    available_mb = int(rows["memory available"].split()[2])
    assert 0 < available_mb < LIMIT_MB
    assert f"limited by               {'memory' if available_mb // 200 < CPU_BOUND else 'cpu'}" in (
        done.stdout
    )


@pytest.mark.parametrize("name", ["gunicorn", "waitress"])
def test_server_has_the_size_that_the_limits_allow(
    start: Starter, limited: tuple[RealGroup, RealGroup], name: str
) -> None:
    """As many requests run at once as fit, and the report says the same."""
    _, own = limited
    server = start(own.command(serve_prod(server=name)), WORKER_MEMORY_MB=str(WORKER_MB))
    report = server.get("/_health/capacity").json()
    assert report["cpus"] == CPUS
    assert LIMIT_MB // 2 < report["memory_available_mb"] < LIMIT_MB
    expected = min(CPU_BOUND, report["memory_available_mb"] // WORKER_MB)
    assert report["limited_by"] == ("cpu" if expected == CPU_BOUND else "memory")
    assert report["concurrency"] == expected > 1
    assert report["workers"] == (expected if name == "gunicorn" else 1)
    seen = server.gather(expected)
    assert len({(facts["pid"], facts["thread"]) for facts in seen}) == expected
    for folder in own.folders:
        pids = (folder / "cgroup.procs").read_text().split()
        assert str(server.pid) in pids
        assert {str(facts["pid"]) for facts in seen} <= set(pids)
    assert server.stop() == 0


def test_limits_of_one_server_leave_another_alone(start: Starter, group: RealGroup) -> None:
    """Two groups on one machine, each with a plan of its own."""
    small, large = group.child("small"), group.child("large")
    for own, size_mb in ((small, 256), (large, 768)):
        own.limit_memory(size_mb)
    command = serve_prod("--worker-memory-mb", "80", "--threads", "1", server="gunicorn")
    reports = [
        start(own.command(command)).get("/_health/capacity").json() for own in (small, large)
    ]
    assert reports[0]["memory_available_mb"] < 256 < reports[1]["memory_available_mb"] < 768


INSIDE = """
import json, mmap, sys
from flask_workersize import detect_resources
held = []
for line in sys.stdin:
    word, _, argument = line.strip().partition(" ")
    if word == "hold":
        held.append(b"x" * int(argument))
    elif word == "cache":
        with open(argument, "wb") as file:
            file.write(b"x" * (64 << 20))
    print(json.dumps(vars(detect_resources())), flush=True)
"""


class Inside:
    """A process in a group that does what it is told, then says what it detects.

    :param group: the group
    """

    def __init__(self, group: RealGroup) -> None:
        self._process = subprocess.Popen(
            group.command([sys.executable, "-c", INSIDE]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def tell(self, order: str = "") -> dict[str, Any]:
        """Give an order, and return the resources that are detected after it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


def test_limit_that_changes_is_seen_by_the_next_detection(group: RealGroup) -> None:
    with Inside(group) as process:
        before = process.tell()
        assert before["memory_at"] != str(group.memory)
        assert before["cpu_at"] != str(group.cpu)
        for size_mb, cpus in ((512, CPUS), (256, 0.5), (384, 0.25)):
            group.limit_memory(size_mb)
            group.limit_cpus(cpus)
            found = process.tell()
            assert (found["memory_limit"], found["cpus"]) == (size_mb * MB, cpus)
            assert (found["memory_at"], found["cpu_at"]) == (str(group.memory), str(group.cpu))


def test_memory_that_is_held_is_not_available_and_page_cache_is(
    group: RealGroup, tmp_path: Path
) -> None:
    """A file just written is in usage of the group, and the kernel drops it when asked."""
    group.limit_memory(LIMIT_MB)
    with Inside(group) as process:
        before = process.tell()["memory_available"]
        after = process.tell(f"hold {64 * MB}")["memory_available"]
        assert 60 * MB < before - after < 80 * MB
        if _is_on_disk(tmp_path):
            cached = process.tell(f"cache {tmp_path / 'file'}")["memory_available"]
            assert abs(after - cached) < 32 * MB


def _is_on_disk(folder: Path) -> bool:
    parts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part[1])]
    return max(parts, key=lambda part: len(part.mountpoint)).fstype != "tmpfs"


def test_memory_that_a_sibling_holds_under_a_shared_limit_is_not_available(
    group: RealGroup,
) -> None:
    group.limit_memory(LIMIT_MB)
    with Inside(group.child("one")) as one, Inside(group.child("other")) as other:
        before = one.tell()["memory_available"]
        other.tell(f"hold {128 * MB}")
        assert 100 * MB < before - one.tell()["memory_available"] < 160 * MB


def test_process_that_is_moved_is_seen_by_the_next_detection(group: RealGroup) -> None:
    own, other = group.child("own"), group.child("other")
    own.limit_memory(512)
    other.limit_memory(256)
    with Inside(own) as process:
        assert process.tell()["memory_at"] == str(own.memory)
        (other.memory / "cgroup.procs").write_text(str(process.pid))
        found = process.tell()
        assert (found["memory_at"], found["memory_limit"]) == (str(other.memory), 256 * MB)
