"""What the meter costs: a request in the process, and the throughput of both servers.

``python -m tests.benchmarks.bench_meter`` prints two tables. The second needs ``wrk``: short runs
in turn of a bare server, the same bare server once more (A/A) and one with the meter. The ratio
A/A is the noise; the cost in the process is the figure to trust.
"""

from __future__ import annotations

import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flask_workersize.runtime.meter import Meter
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.servers.gunicorn.arrival import GunicornArrival
from flask_workersize.servers.overload import OverloadGate
from flask_workersize.sizing.settings import SizingSettings
from tests.servers.clients import PATH
from tests.servers.serving import CONF, Server, Starter, gunicorn, serve_prod, starter

ROUNDS = 25
SECONDS = "1s"
CALLS = 100_000
APP = "busy:create_app"

WAITRESS_ALONE = (
    "import logging, waitress; from busy import create_app; logging.basicConfig(level='INFO'); "
    "waitress.serve(create_app(), listen='127.0.0.1:0', threads=4, asyncore_use_poll=True, "
    "connection_limit=1000)"
)


class _Response:
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def __iter__(self) -> Any:
        return iter(self._parts)

    def close(self) -> None:
        pass


def _app(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return _Response([b"hello"])


def _microseconds(app: Any, connection: socket.socket, client: socket.socket) -> float:
    begun = time.perf_counter()
    for number in range(CALLS):
        if number % 100 == 0:
            # It always has just said something, as without a queue.
            client.send(b"!")
        environ = {
            "wsgi.file_wrapper": _Response.__class__,
            "gunicorn.socket": connection,
            "SERVER_PROTOCOL": "HTTP/1.1",
        }
        response = app(environ, lambda *args: None)
        for _ in response:
            pass
        response.close()
    return (time.perf_counter() - begun) / CALLS * 1e6


def in_process() -> None:
    """Print what the meter adds to a request, in turn with the app alone."""
    board = Scoreboard(workers=1, threads=1)
    row = board.allocate(1)
    assert row is not None
    gate = OverloadGate(GunicornArrival(closes=True), SizingSettings(queue_seconds=0.5), board)
    metered = Meter(_app, row, gate=gate)
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        connection = stack.enter_context(listener.accept()[0])
        alone, added = [], []
        for _ in range(7):
            alone.append(_microseconds(_app, connection, client))
            added.append(_microseconds(metered, connection, client) - alone[-1])
    told = statistics.median(alone), statistics.median(added)
    print("in the process: app alone {:.2f} µs, the meter adds {:.2f} µs a request".format(*told))


def _requests_a_second(server: Server) -> float:
    command = ["wrk", "-t1", "-c4", f"-d{SECONDS}", server.urls[0]]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert found, told
    return float(found[1])


def _compare(start: Starter, bare: list[str], metered: list[str]) -> tuple[list[float], ...]:
    """Return requests a second, the ratios A/A, and those of the metered server to the bare one."""
    first, second = (start(bare, None, **PATH, BARE="1") for _ in range(2))
    ours = start(metered, None, **PATH, NOW_LMS_HEALTH_PORT="0")
    speeds, same, ratios = [], [], []
    for number in range(ROUNDS):
        order = [first, second, ours]
        order = order[number % 3 :] + order[: number % 3]
        run = {id(server): _requests_a_second(server) for server in order}
        speeds.append(run[id(first)])
        same.append(run[id(second)] / run[id(first)])
        ratios.append(run[id(ours)] / run[id(first)])
    for server in (first, second, ours):
        server.stop()
    return speeds, same, ratios


def _shown(ratios: list[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def throughput() -> None:
    """Print the throughput of each server with and without the meter."""
    sizes = {"sync, 2 workers": ["-w", "2"], "gthread, 2 × 2": ["-w", "2", "--threads", "2"]}
    app = f"{APP}()"
    log = ["--access-logfile", "-", "--keep-alive", "5"]
    pairs = {
        f"gunicorn {name}": (gunicorn(*size, *log, app=app), gunicorn("-c", CONF, *size, app=app))
        for name, size in sizes.items()
    }
    pairs["waitress, 4 threads"] = (
        [sys.executable, "-c", WAITRESS_ALONE],
        serve_prod("--threads", "4", server="waitress", app=APP),
    )
    print(f"{'median (quartiles) of ' + str(ROUNDS):<26} {'bare/s':>7} {'A/A':>24} {'metered':>24}")
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        for name, (bare, metered) in pairs.items():
            speeds, same, ratios = _compare(start, bare, metered)
            speed = statistics.median(speeds)
            print(f"{name:<26} {speed:>7.0f} {_shown(same):>24} {_shown(ratios):>24}", flush=True)


def main() -> None:
    """Print both tables."""
    in_process()
    if shutil.which("wrk") is None:
        print("throughput: wrk is not on this machine (Debian: apt-get install wrk)")
        return
    throughput()


if __name__ == "__main__":
    main()
