"""``memory.high`` and ``memory.oom.group``, which only control groups of version 2 have."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.resources.machines import MB
from tests.resources.real_groups import RealGroup, group_or_skip
from tests.servers.serving import Starter, await_that, flask, serve_prod, starter
from tests.servers.test_memory_guard import APP, ON, has_line, report, send_many

FOUR = ("--wsgi-server", "gunicorn", "--workers", "4")


@pytest.fixture
def group() -> Iterator[RealGroup]:
    """Make a group of version 2, or skip the test with the reason."""
    with group_or_skip() as group:
        if not group.is_v2:
            pytest.skip("memory.high needs control groups of version 2")
        yield group


@pytest.fixture
def start(tmp_path: Path, group: RealGroup) -> Iterator[Starter]:
    """Start servers, and end them before the group is removed."""
    with starter(tmp_path) as start:
        yield start


def test_limit_that_throttles_is_warned_of_and_never_reached(
    start: Starter, group: RealGroup
) -> None:
    """Workers of 40 MB: all that are too many go before the kernel slows anybody."""
    (group.memory / "memory.high").write_text(str(200 * MB))
    command = group.command(serve_prod(*FOUR, app=APP))
    server = start(command, None, **ON, WORKER_MEMORY_MB="40").await_ready()
    assert "memory.high is 200 MB, for a plan of 160 MB" in server.stderr
    for _ in range(16):
        assert send_many(server, "/honest?mb=25", 1, clients=1) == []
        time.sleep(0.3)
    await_that(has_line(server, r"removing (a worker|\d workers)"), "removed")
    assert send_many(server, "/honest?mb=25", 60, clients=2) == []
    assert report(server)["workers_wanted"] < 4
    assert "throttled by the kernel" not in server.stderr
    high = re.search(r"^high (\d+)$", (group.memory / "memory.events").read_text(), re.M)
    assert high
    assert int(high[1]) == 0


def test_server_that_is_slowed_by_the_kernel_says_so(start: Starter, group: RealGroup) -> None:
    """Without the guard, which would have removed workers before."""
    command = group.command(serve_prod(*FOUR, app=APP))
    server = start(command, None, **{**ON, "NOW_LMS_MEMORY_GUARD": "off"}).await_ready()
    used = int((group.memory / "memory.current").read_text())
    (group.memory / "memory.high").write_text(str(used + 20 * MB))
    # The kernel puts to sleep who asks: one request, whose answer nobody waits for.
    connection = server.connect()
    connection.request("GET", "/hold?mb=60&seconds=1")
    await_that(has_line(server, "throttled by the kernel. memory.high"), "said", 60)
    (group.memory / "memory.high").write_text("max")
    assert connection.getresponse().status == 200
    connection.close()


def test_group_that_is_killed_together_is_warned_of(start: Starter, group: RealGroup) -> None:
    (group.memory / "memory.oom.group").write_text("1")
    done = start.run(group.command(flask("workersize", "plan", app=APP)), **ON)
    assert "memory.oom.group is set" in done.stdout + done.stderr
