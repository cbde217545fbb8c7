"""After a fork each worker has connections of its own, and ends without the launcher's clean-up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers.clients import PATH, SLOW
from tests.servers.serving import Server, Starter, await_that, serve_prod

WORKERS = 3


@pytest.fixture(params=["1", "2"])
def pooled(start: Starter, request: pytest.FixtureRequest) -> Server:
    """Start the app with the pool, in sync and in threaded workers, and wait for all workers."""
    command = serve_prod(
        "--workers", str(WORKERS), "--threads", request.param, server="gunicorn", app="pooled"
    )
    server = start(command, None, **PATH)
    await_that(lambda: len(words(server, "signals.txt")) == WORKERS, "all workers")
    return server


def words(server: Server, name: str) -> list[list[str]]:
    """Return the words of each line of a file that the app writes."""
    path = server.folder / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split() for line in lines]


def test_every_worker_has_a_connection_of_its_own_and_writes_are_not_lost(pooled: Server) -> None:
    """Several workers write at once; the launcher's connection stays open and is used again."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: pooled.get("/mark", method="POST").json(), range(60)))
    assert len({answer["pid"] for answer in answers}) > 1
    for answer in answers:
        assert answer["made_in"] == answer["pid"]
    assert pooled.stop() == 0
    before, after = words(pooled, "launcher.txt")
    assert before == [str(pooled.pid), str(pooled.pid)]
    assert after == [str(pooled.pid), str(pooled.pid), "60"]


def test_no_worker_says_goodbye_on_a_connection_of_the_launcher(pooled: Server) -> None:
    """Neither by closing it nor by letting the garbage collector find it."""
    pooled.get("/")
    assert pooled.stop() == 0
    for pid, made_in in words(pooled, "goodbyes.txt"):
        assert pid == made_in


def test_signal_is_received_once_in_each_worker_with_the_app_as_sender(pooled: Server) -> None:
    pooled.get("/")
    received = words(pooled, "signals.txt")
    assert sorted(pid for pid, _ in received) == sorted(map(str, pooled.booted_pids))
    assert {is_app for _, is_app in received} == {"True"}


def test_worker_leaves_by_its_own_exit_handlers_and_not_by_the_commands_teardown(
    pooled: Server,
) -> None:
    """Flask's command has pushed an app context, which is the launcher's to tear down."""
    pid = pooled.get("/").json()["pid"]
    assert pooled.stop() == 0
    exits = [pid for (pid,) in words(pooled, "exits.txt")]
    assert sorted(exits) == sorted(map(str, [pooled.pid, *pooled.booted_pids]))
    # One for the engines after the fork, one for the request.
    teardowns = [int(pid) for (pid,) in words(pooled, "teardowns.txt") if pid != str(pooled.pid)]
    assert sorted(teardowns) == sorted([*pooled.booted_pids, pid])


@pytest.mark.parametrize("threads", ["1", "2"])
def test_worker_waits_for_the_threads_of_the_app_as_python_does(
    start: Starter, threads: str
) -> None:
    """A job that outlives its request is not lost at a stop."""
    command = serve_prod("--workers", "1", "--threads", threads, server="gunicorn", app=SLOW)
    server = start(command, None, **PATH)
    server.get("/later")
    await_that((server.folder / "job.here").exists, "the job runs")
    assert server.stop() == 0
    assert (server.folder / "job.done").exists()


@pytest.mark.parametrize("threads", ["1", "2"])
def test_every_app_of_the_process_has_connections_of_its_own_after_a_fork(
    start: Starter, threads: str
) -> None:
    """One app is mounted in the other, and each has used its pool before the fork."""
    command = serve_prod("--workers", "2", "--threads", threads, server="gunicorn", app="mounted")
    server = start(command, None, **PATH)
    for path, name in (("/", "outer"), ("/inner/", "inner")):
        seen = server.get(path).json()
        assert seen["name"] == name
        assert seen["pool_of_launcher"] is False
        assert seen["made_in"] == seen["pid"] != server.pid
        assert sorted(seen["forked"]) == ["inner", "outer"]
    assert server.stop() == 0
