"""Threaded workers share what comes: none queues requests while another has threads to spare."""

from __future__ import annotations

import http.client
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.servers.clients import PATH, SLOW
from tests.servers.serving import Server, Starter, ask, await_that, serve_prod

WORKERS, THREADS = 3, 2
SLOTS = WORKERS * THREADS
ON = {**PATH, "NOW_LMS_HEALTH_PORT": "0"}


@pytest.fixture
def server(start: Starter) -> Server:
    """Start workers with threads, and wait until all are ready."""
    size = ["--workers", str(WORKERS), "--threads", str(THREADS)]
    return start(serve_prod(*size, server="gunicorn", app=SLOW), None, **ON).await_ready()


def hold(server: Server, names: list[str], connections: list[http.client.HTTPConnection]) -> None:
    """Let a request run for each name, all at the same time, then answer them."""
    with ThreadPoolExecutor(len(names)) as pool:
        pairs = zip(names, connections, strict=True)
        answers = [pool.submit(ask, conn, f"/hold?name={name}") for name, conn in pairs]
        try:
            here = [server.folder / f"{name}.here" for name in names]
            # The app gives up before the usual deadline, and then the next would run.
            await_that(lambda: all(path.exists() for path in here), "all run at once", 15)
        finally:
            for name in names:
                (server.folder / f"{name}.go").touch()
        assert [answer.result().status for answer in answers] == [200] * len(names)


def test_as_many_requests_run_at_once_as_there_are_slots(server: Server) -> None:
    """With gunicorn's own threaded worker the first one awake takes them all."""
    with ExitStack() as stack:
        kept = [server.connect() for _ in range(SLOTS)]
        for conn in kept:
            stack.callback(conn.close)
        for turn in range(4):
            # From the second turn on, each is where its connection is.
            hold(server, [f"{turn}-{number}" for number in range(SLOTS)], kept)


def test_connections_that_ask_a_moment_later_are_shared_too(server: Server) -> None:
    """When they are accepted, they hold no thread; nor can they move when they ask."""
    with ExitStack() as stack:
        connections = [server.connect() for _ in range(SLOTS)]
        for conn in connections:
            stack.callback(conn.close)
            conn.connect()
        time.sleep(0.2)
        hold(server, [str(number) for number in range(SLOTS)], connections)


def test_connections_that_do_not_ask_keep_nobody_out(server: Server) -> None:
    """They count as if they would, but no more of them than there are threads."""
    with ExitStack() as stack:
        connections = [server.connect() for _ in range(5 * SLOTS)]
        for conn in connections:
            stack.callback(conn.close)
        # Else a worker would begin with one of them, and wait for it.
        hold(server, [str(number) for number in range(SLOTS)], connections[:SLOTS])
        for conn in connections[SLOTS:]:
            conn.connect()
        client = server.connect()
        client.timeout = 1.5
        stack.callback(client.close)
        assert ask(client, "/").status == 200


def in_kernel(server: Server) -> int:
    """Return how many connections wait to be accepted (proc(5), "/proc/net/tcp")."""
    port = f"{urlsplit(server.urls[0]).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row for row in rows if row[1].endswith(f":{port}") and row[3] == "0A"]
    assert listening
    return sum(int(row[4].partition(":")[2], 16) for row in listening)


def test_more_requests_than_slots_are_answered_too(server: Server) -> None:
    with ThreadPoolExecutor(5 * SLOTS) as pool:
        answers = list(pool.map(server.get, ["/"] * 5 * SLOTS))
    assert [answer.status for answer in answers] == [200] * 5 * SLOTS


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the kernel has queued")
def test_worker_that_hangs_takes_no_request_from_the_others(start: Starter) -> None:
    """It holds nothing and never accepts: after some silence the others leave nothing to it."""
    size = ["--workers", "2", "--threads", "2"]
    server = start(serve_prod(*size, server="gunicorn", app=SLOW), None, **ON).await_ready()
    workers = set(psutil.Process(server.pid).children()) - {server.monitor}
    hanging = workers.pop().pid
    os.kill(hanging, signal.SIGSTOP)
    try:
        names = ["a", "b", "c", "d"]
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(server.get, f"/hold?name={name}") for name in names]
            await_that(lambda: server.live_report()["queued"] == 2, "two run and two wait")
            # They would stay in the queue of the kernel until a thread of the other is free.
            await_that(lambda: not in_kernel(server), "the two are accepted")
            assert server.live_report()["queued"] == 2
            for name in names:
                (server.folder / f"{name}.go").touch()
            assert [answer.result().status for answer in answers] == [200] * 4
    finally:
        os.kill(hanging, signal.SIGCONT)
