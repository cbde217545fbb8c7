"""HAProxy with the exported file, before three servers that are restarted under load.

Beside it the same for plain gunicorn. ``pytest -m fleet -n0 tests/export/test_rolling.py`` prints
the figures with which ``docs/fleet.rst`` ends.
"""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from flask_workersize.export import derive
from flask_workersize.export.render import render
from tests.export.balancer import WITHOUT_RETRIES, HAProxy, changed, free_port, load
from tests.export.intents import intent
from tests.export.test_with_tools import tool
from tests.servers.serving import Server, Starter, ask, await_that, connect, serve_prod, starter

pytestmark = [
    pytest.mark.fleet,
    pytest.mark.skipif(sys.platform != "linux", reason="each replica has an address 127.x.x.x"),
]

GIVEN = intent(replicas="3", drain="4")
SLOTS = derive.plan_of(GIVEN).concurrency
CLIENTS = 4
"""Clients of each balancer, fewer than the slots that are left while a replica is away."""

HOW = ("as exported", "without retries")
PHASES = {"restart, drain of 4 s": False, "restart, no drain": False, "kill -9": True}
"""What is done to each replica in turn, and whether that is a kill."""

APP = """
import time
from flask import Flask
from flask_workersize import WorkerSizing

def create_app(sized=True):
    app = Flask("lms")
    if sized:
        WorkerSizing(app)
    app.add_url_rule("/", view_func=lambda: time.sleep(0.05) or "here")
    return app
"""


class Fleet:
    """Three replicas by ``flask serve-prod``, and two balancers: as exported, without retries.

    :param start: starts the replicas
    :param network: the first three numbers of their addresses
    """

    name, check_path = "serve-prod", "/ready"

    def __init__(self, start: Starter, network: str) -> None:
        self.start = start
        self.network = network
        self.port, self.health_port = free_port(), free_port()
        self.drain_seconds = GIVEN.drain_seconds
        self.servers = [self.launch(number) for number in range(3)]
        self.balancers: list[HAProxy] = []

    def address(self, number: int) -> str:
        """Return the address of a replica."""
        return f"{self.network}.{11 + number}"

    def launch(self, number: int) -> Server:
        """Start a replica, and wait for nothing."""
        address = self.address(number)
        environ = {item.name: item.value for item in derive.environment(GIVEN)} | {
            "NOW_LMS_HOST": address,
            "NOW_LMS_HEALTH_HOST": address,
            "NOW_LMS_PORT": str(self.port),
            "NOW_LMS_HEALTH_PORT": str(self.health_port),
            "NOW_LMS_DRAIN_SECONDS": str(self.drain_seconds),
            # A replica has limits, which it follows; these servers have none.
            "NOW_LMS_WORKERS": str(SLOTS),
        }
        return self.start.launch(serve_prod(app="rolled:create_app"), None, **environ)

    def is_ready(self, number: int) -> bool:
        """Return whether a replica answers the check of its balancer."""
        url = f"http://{self.address(number)}:{self.health_port}"
        with closing(connect(url)) as connection, suppress(OSError, HTTPException):
            return ask(connection, self.check_path).status == 200
        return False

    def await_ready(self) -> None:
        """Wait until every replica is ready, and every balancer sends to all of them."""
        await_that(lambda: all(map(self.is_ready, range(3))), "ready")
        await_that(lambda: all(item.up() == 3 for item in self.balancers), "up")

    def add_balancer(self, program: str, text: str) -> None:
        """Put an exported file, with the addresses that there are here, before the replicas."""
        port = free_port()
        for old, new in {
            "bind :80": f"bind 127.0.0.1:{port}",
            "10.0.0.": f"{self.network}.",
            f":{derive.PORT}": f":{self.port}",
            f"port {derive.HEALTH_PORT} ": f"port {self.health_port} ",
            "GET /ready": f"GET {self.check_path}",
        }.items():
            assert old in text
            text = text.replace(old, new)
        self.balancers.append(HAProxy(program, self.start.folder / f"balancer-{port}", text, port))

    def restart_all(self, kill: bool) -> None:
        """End one replica after the other and start it again, each when all are up."""
        for number, server in enumerate(self.servers):
            if kill:
                server.signal_group(signal.SIGKILL)
                server.wait()
            else:
                assert server.stop() == 0
            self.servers[number] = self.launch(number)
            self.await_ready()

    def close(self) -> None:
        """End the balancers."""
        for balancer in self.balancers:
            balancer.close()


class PlainFleet(Fleet):
    """The same by gunicorn itself: it has no health port, and does not drain."""

    name, check_path = "gunicorn", "/"

    def launch(self, number: int) -> Server:
        """Start a replica, and wait for nothing."""
        self.health_port = self.port
        command = [sys.executable, "-m", "gunicorn", f"--bind={self.address(number)}:{self.port}"]
        return self.start.launch([*command, f"--workers={SLOTS}", "rolled:create_app(False)"])


def test_restart_and_kill_under_load_lose_no_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the exported file not one; if the replicas drain, not even without its retries."""
    program, exported = tool("haproxy"), render("haproxy", GIVEN)["haproxy.cfg"]
    (tmp_path / "rolled.py").write_text(APP)
    failed: list[list[int]] = []
    with ExitStack() as stack, starter(tmp_path) as start:
        fleets = [Fleet(start, "127.77.1"), PlainFleet(start, "127.77.2")]
        for fleet in fleets:
            stack.callback(fleet.close)
            fleet.add_balancer(program, exported)
            fleet.add_balancer(program, changed(exported, WITHOUT_RETRIES))
            fleet.await_ready()
        ports = [balancer.port for fleet in fleets for balancer in fleet.balancers]
        rows = [["", *(f"{fleet.name}, {how}" for fleet in fleets for how in HOW)]]
        for phase, kill in PHASES.items():
            # Those that are started now are the ones that are restarted in the next phase.
            fleets[0].drain_seconds = 0
            with ExitStack() as loads, ThreadPoolExecutor(len(fleets)) as pool:
                outcomes = [loads.enter_context(load(port, CLIENTS)) for port in ports]
                list(pool.map(lambda fleet: fleet.restart_all(kill), fleets))  # noqa: B023
            rows.append([phase, *map(str, outcomes)])
            failed.append([len(outcome.failed) for outcome in outcomes])
    with capsys.disabled():
        print("", *("  ".join(cell.ljust(30) for cell in row).rstrip() for row in rows), sep="\n")
    drained, restarted, killed = failed
    assert drained[:2] == [0, 0]
    assert [restarted[0], killed[0]] == [0, 0]
    # The load is one that finds what is lost: here nothing holds it back.
    assert all(lost > 0 for _, _, _, lost in failed)
