"""In real control groups: memory stays below its limit, nothing is lost, and the size follows."""

from __future__ import annotations

import http.client
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.resources.machines import MB
from tests.resources.real_groups import RealGroup, group_or_skip
from tests.servers.clients import PATH
from tests.servers.serving import (
    CONF,
    Server,
    Starter,
    ask,
    await_that,
    gunicorn,
    serve_prod,
    starter,
)

TOKEN = "a token of the tests"
BEARER = [("Authorization", f"Bearer {TOKEN}")]
ON = {**PATH, "NOW_LMS_HEALTH_PORT": "0", "NOW_LMS_HEALTH_TOKEN": TOKEN}
APP = "leaky:create_app"


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


def oom_kills(group: RealGroup) -> int:
    """Return how many processes the kernel has killed in the group."""
    name = "memory.events" if group.is_v2 else "memory.oom_control"
    found = re.search(r"^oom_kill (\d+)$", (group.memory / name).read_text(), re.M)
    assert found
    return int(found[1])


def start_in(start: Starter, group: RealGroup, limit_mb: int, *args: str, **environ: str) -> Server:
    """Start the leaky app under a limit, and wait until every worker is ready."""
    group.limit_memory(limit_mb)
    command = group.command(serve_prod(*args, app=APP))
    return start(command, None, **ON, **environ).await_ready()


def send_many(server: Server, path: str, count: int, clients: int = 4) -> list[str]:
    """Send so many requests with as many clients, and return what failed."""
    failed: list[str] = []
    left = iter(range(count))
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            connection = server.connect()
            try:
                assert ask(connection, path).status == 200
            except (OSError, http.client.HTTPException, AssertionError) as error:
                failed.append(repr(error))
            finally:
                connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def report(server: Server) -> dict[str, Any]:
    told: dict[str, Any] = server.live_report(BEARER)
    return told


def has_line(server: Server, pattern: str) -> Callable[[], bool]:
    return lambda: re.search(pattern, server.stderr) is not None


@pytest.mark.parametrize(
    "size", [["--workers", "4"], ["--workers", "2", "--threads", "2"]], ids=["sync", "gthread"]
)
def test_leak_of_half_a_megabyte_a_request_kills_and_loses_nothing(
    start: Starter, group: RealGroup, size: list[str]
) -> None:
    """1,000 requests leak twice the limit."""
    server = start_in(start, group, 256, "--wsgi-server", "gunicorn", *size)
    assert send_many(server, "/leak", 1000) == []
    told = report(server)
    assert oom_kills(group) == told["oom_kills"] == told["crashed"] == 0
    assert told["recycled"] > 0
    assert told["workers_wanted"] == told["workers"]
    assert told["guard"] == "recycling"
    assert told["memory_limit_mb"] == 256
    events = [event["text"] for event in server.live_report()["events"]]
    assert any(re.match(r"memory: recycling a worker \(grew \d+ MB\);", text) for text in events)
    assert len(re.findall(r"memory: recycling worker \d+ .*of 256 MB in use", server.stderr)) == 1
    assert server.stop() == 0
    assert server.members() == []


def test_leak_while_the_size_follows_the_load_kills_and_loses_nothing(
    start: Starter, group: RealGroup
) -> None:
    small = {"NOW_LMS_SIZING": "adaptive", "NOW_LMS_WORKER_MEMORY_MB": "60"}
    server = start_in(start, group, 256, "--wsgi-server", "gunicorn", **small)
    assert send_many(server, "/leak", 1000, clients=12) == []
    told = report(server)
    assert oom_kills(group) == told["oom_kills"] == told["crashed"] == 0
    assert told["recycled"] > 0
    assert server.stop() == 0


def test_leak_under_gunicorn_conf_kills_and_loses_nothing(start: Starter, group: RealGroup) -> None:
    group.limit_memory(256)
    command = group.command(gunicorn("-c", CONF, "-w", "4", app=f"{APP}()"))
    server = start(command, None, **ON).await_ready()
    assert send_many(server, "/leak?mb=0.3", 1000) == []
    assert oom_kills(group) == 0
    assert report(server)["recycled"] > 0
    assert server.stop() == 0


def test_last_worker_goes_only_when_its_successor_is_ready(
    start: Starter, group: RealGroup
) -> None:
    server = start_in(start, group, 256, "--wsgi-server", "gunicorn", "--workers", "1")
    over, fewest = threading.Event(), [9]

    def look() -> None:
        while not over.is_set():
            ready = sum(row["ready"] for row in report(server)["processes"])
            fewest[0] = min(fewest[0], ready)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        assert send_many(server, "/leak", 600, clients=2) == []
    finally:
        over.set()
        looking.join()
    assert fewest[0] >= 1
    assert oom_kills(group) == 0
    await_that(lambda: report(server)["workers_alive"] == 1, "one again")
    assert report(server)["restarts"] >= 1
    assert "memory: starting a worker to replace" in server.stderr


def test_app_that_is_too_large_gets_fewer_workers_and_a_line_that_says_what_to_set(
    start: Starter, group: RealGroup
) -> None:
    server = start_in(start, group, 160, "--wsgi-server", "gunicorn", "--workers", "4")
    # One after the other, so that the kernel need not act before anybody can.
    for _ in range(14):
        assert send_many(server, "/honest?mb=20", 1, clients=1) == []
        time.sleep(0.4)
    await_that(has_line(server, "The plan is too large"), "said")
    told = report(server)
    assert told["workers_wanted"] < told["workers"] == 4
    await_that(lambda: report(server)["workers_alive"] == told["workers_wanted"], "as wanted")
    assert told["guard"] == "reduced"
    (advised,) = set(re.findall(r"Set (NOW_LMS_WORKERS=\d) or NOW_LMS_W", server.stderr)[-1:])
    assert any(f"set {advised}, or give it more memory" in step for step in told["advice"])
    assert oom_kills(group) == 0


@pytest.mark.parametrize("threads", ["1", "2"], ids=["sync", "gthread"])
def test_first_requests_of_all_workers_at_once_kill_and_lose_nothing(
    start: Starter, group: RealGroup, threads: str
) -> None:
    """60 MB each, of which three fit; the monitor removes the others before they serve."""
    size = ["--wsgi-server", "gunicorn", "--workers", "5", "--threads", threads]
    server = start_in(start, group, 256, *size)
    assert send_many(server, "/honest", 150, clients=8) == []
    assert oom_kills(group) == 0
    assert 1 <= report(server)["workers_wanted"] <= 3


def test_worker_above_its_own_bound_is_recycled_though_there_is_memory(
    start: Starter, group: RealGroup
) -> None:
    server = start_in(
        start, group, 2048, "--wsgi-server", "gunicorn", "--workers", "2",
        NOW_LMS_WORKER_MEMORY_MAX_MB="40",
    )  # fmt: skip
    assert send_many(server, "/leak", 200) == []
    await_that(lambda: report(server)["recycled"] > 0, "recycled")
    assert "above its limit of 40 MB" in server.stderr


def test_recycled_worker_finishes_its_request(start: Starter, group: RealGroup) -> None:
    server = start_in(
        start, group, 2048, "--wsgi-server", "gunicorn", "--workers", "2",
        NOW_LMS_WORKER_MEMORY_MAX_MB="40",
    )  # fmt: skip
    held = server.connect()
    held.request("GET", "/hold?mb=60&seconds=2")
    await_that(lambda: report(server)["recycled"] > 0, "recycled")
    assert held.getresponse().status == 200
    held.close()


def test_kernel_that_was_faster_is_named_with_what_to_set(start: Starter, group: RealGroup) -> None:
    server = start_in(
        start, group, 128, "--wsgi-server", "gunicorn", "--workers", "2",
        NOW_LMS_MEMORY_GUARD="off",
    )  # fmt: skip
    send_many(server, "/leak?mb=8", 40)
    assert oom_kills(group) > 0
    pattern = (
        r"worker (?:\d+ )?was OOM-killed.* \(limit 128 MB, plan 2 × 200 MB\)\. "
        r"Set NOW_LMS_WORKERS=1 or NOW_LMS_WORKER_MEMORY_MB=\d+\."
    )
    await_that(has_line(server, pattern), "said")
    await_that(lambda: report(server)["oom_kills"] == oom_kills(group), "counted")
    told = report(server)
    assert (told["guard"], told["recycled"]) == ("off", 0)
    assert told["crashed"] == told["oom_kills"]


def test_killed_by_hand_is_not_called_a_kill_for_memory(start: Starter, group: RealGroup) -> None:
    server = start_in(start, group, 256, "--wsgi-server", "gunicorn", "--workers", "2")
    killed = server.booted_pids[0]
    os.kill(killed, signal.SIGKILL)
    await_that(has_line(server, f"{killed}.*counted no OOM kill"), "said")
    assert "OOM-killed" not in server.stderr


def test_workers_are_what_the_kernel_would_kill_first(start: Starter, group: RealGroup) -> None:
    server = start_in(start, group, 256, "--wsgi-server", "gunicorn", "--workers", "2")

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    others = max(score(server.pid), score(server.monitor.pid))
    assert all(score(pid) > others for pid in server.booted_pids)


@pytest.mark.parametrize("command", ["serve-prod", "gunicorn_conf"])
def test_number_of_workers_follows_the_limit_and_a_reload_keeps_it(
    start: Starter, group: RealGroup, command: str
) -> None:
    environ = {"NOW_LMS_WORKER_MEMORY_MB": "60", "NOW_LMS_WSGI_SERVER": "gunicorn"}
    group.limit_memory(200)
    line = serve_prod(app=APP) if command == "serve-prod" else gunicorn("-c", CONF, app=f"{APP}()")
    server = start(group.command(line), None, **ON, **environ).await_ready()
    few = report(server)["workers"]
    assert few < 4
    group.limit_memory(1024)
    await_that(lambda: report(server)["workers_alive"] > few, "more workers")
    many = report(server)["workers_wanted"]
    await_that(lambda: report(server)["workers_alive"] == many, "all of them")
    assert re.search(
        rf"memory limit changed from 200 MB to 1024 MB: scaling from {few} to {many} workers",
        server.stderr,
    )
    before = {row["pid"] for row in report(server)["processes"]}
    server.signal(signal.SIGHUP)

    def is_settled() -> bool:
        rows = report(server)["processes"]
        ready = {row["pid"] for row in rows if row["ready"]}
        return len(rows) == len(ready) == many and not ready & before

    await_that(is_settled, "kept")
    time.sleep(1.5)
    assert is_settled()
    group.limit_memory(200)
    await_that(lambda: report(server)["workers_alive"] == few, "fewer again")
    assert oom_kills(group) == 0
    assert server.stop() == 0


def test_workers_that_were_asked_for_do_not_follow(start: Starter, group: RealGroup) -> None:
    server = start_in(start, group, 512, "--wsgi-server", "gunicorn", "--workers", "2")
    time.sleep(2.5)
    group.limit_memory(1024)
    await_that(lambda: report(server)["memory_limit_mb"] == 1024, "seen")
    time.sleep(2.5)
    assert report(server)["workers_alive"] == 2
    assert "scaling from" not in server.stderr


def test_waitress_warns_and_is_not_ready_before_the_kernel_acts(
    start: Starter, group: RealGroup
) -> None:
    server = start_in(start, group, 200, "--wsgi-server", "waitress")
    grow(server, lambda: report(server)["status"] == "warn")
    assert server.probe("/ready").status == 200
    grow(server, lambda: server.probe("/ready").status == 503)
    assert b'"memory"' in server.probe("/ready").body
    assert server.probe("/live").status == 200
    assert server.get("/none").status == 200
    assert oom_kills(group) == 0
    assert "NOW_LMS_MEMORY_GUARD=exit" in server.stderr


def test_waitress_ends_with_its_own_status_where_asked_to(start: Starter, group: RealGroup) -> None:
    server = start_in(start, group, 200, "--wsgi-server", "waitress", NOW_LMS_MEMORY_GUARD="exit")
    grow(server, lambda: server.process.poll() is not None)
    assert server.wait() == 75
    assert oom_kills(group) == 0
    assert "memory: stopping the server" in server.stderr
    assert server.members() == []


def grow(server: Server, until: Callable[[], bool]) -> None:
    """Leak by steps until something is the case."""
    for _ in range(100):
        if until():
            return
        with suppress(OSError):
            server.get("/leak?mb=4")
        time.sleep(0.3)
    raise AssertionError(
        f"nothing happened at {psutil.Process(server.pid).memory_info().rss // MB}"
    )
