"""NOW_LMS_SIZING=adaptive: a size that follows the load, on real servers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tests.servers.clients import PATH, SLOW, at_once
from tests.servers.serving import (
    CONF,
    DEADLINE_SECONDS,
    Server,
    Starter,
    await_that,
    gunicorn,
    serve_prod,
)

TOKEN = "a token of the tests"
WAITS = "/sleep?name=any&seconds=0.05"


@contextmanager
def load(server: Server, clients: int, path: str) -> Iterator[list[tuple[int, bool]]]:
    """Ask with so many clients at once, each on a connection that it keeps if it may.

    The status of each response, and whether it announced the end of the connection.
    """
    answers: list[tuple[int, bool]] = []

    def client(over: threading.Event) -> None:
        connection = server.connect()
        while not over.is_set():
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            answers.append((response.status, response.will_close))
        connection.close()

    with at_once(client, clients):
        yield answers


def serve(start: Starter, *args: str, server: str, **environ: str) -> Server:
    command = serve_prod(*args, server=server, app=SLOW)
    health = {"NOW_LMS_HEALTH_PORT": "0", "NOW_LMS_HEALTH_TOKEN": TOKEN}
    return start(
        command, None, **PATH, **health, NOW_LMS_SIZING="adaptive", **environ
    ).await_ready()


def pids(server: Server) -> set[int]:
    rows = server.live_report([("Authorization", f"Bearer {TOKEN}")])["processes"]
    return {row["pid"] for row in rows if row["ready"]}


@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
def test_size_grows_while_requests_wait_and_nothing_is_lost(start: Starter, server: str) -> None:
    found = serve(start, server=server, NOW_LMS_MAX_WORKERS="2", NOW_LMS_PRELOAD="off")
    before = found.live_report()
    assert before["slots_most"] == (128 if server == "gunicorn" else 64)
    with load(found, 24, WAITS) as answers:
        psutil.cpu_percent()
        until = time.monotonic() + DEADLINE_SECONDS
        while found.live_report()["slots"] <= before["slots"]:
            if time.monotonic() > until:
                busy = psutil.cpu_percent()
                assert busy > 90, "it has not grown"
                pytest.skip(f"{busy:.0f} % of the CPUs are used: there is nothing to grow into")
            time.sleep(0.1)
        # What was grown is used.
        await_that(lambda: found.live_report()["busy"] > before["slots"], "more run at once")
    assert {status for status, _ in answers} == {200}
    # Who had waited was in the queue that the workers share.
    assert server == "waitress" or any(closes for _, closes in answers)
    after: dict[str, Any] = found.live_report()
    assert after["slots"] <= after["slots_most"]
    # What was planned stays what it was.
    planned = ("workers", "threads", "concurrency", "worker_class")
    assert [after[name] for name in planned] == [before[name] for name in planned]
    assert "; adapts: " in found.stderr
    assert "size: " in found.stderr
    assert after["why"]["adapts"].endswith("1 to 64 threads")
    assert any(event["text"].startswith("size: ") for event in after["events"])
    if server == "gunicorn":
        keeps_its_size_at_a_reload(found)
    assert found.stop() == 0


def keeps_its_size_at_a_reload(server: Server) -> None:
    size, old = server.live_report(), pids(server)
    server.signal(signal.SIGHUP)
    await_that(lambda: len(pids(server) - old) == len(old) == len(pids(server)), "all are new")
    new = server.live_report()
    assert [new[name] for name in ("slots", "workers_wanted")] == [
        size[name] for name in ("slots", "workers_wanted")
    ]


def test_direct_gunicorn_says_that_it_keeps_its_size(start: Starter) -> None:
    command = gunicorn("-c", CONF, "-w", "1", app=f"{SLOW}()")
    server = start(command, None, **PATH, NOW_LMS_SIZING="adaptive")
    line = "NOW_LMS_SIZING=adaptive needs flask serve-prod: this gunicorn keeps its size."
    assert server.stderr.count(line) == 1
