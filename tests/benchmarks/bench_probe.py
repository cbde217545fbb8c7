"""How fast probes answer while every worker is busy, and what the monitor needs of memory.

``python -m tests.benchmarks.bench_probe`` prints, for both servers: the p99 of /live on the health
port, idle and with every slot busy, waiting or computing; the aim, 2 × idle + 5 ms; the p99 of
the report on the app's own port under the same load; and the PSS that the monitor adds to the sum.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.servers.clients import PATH, SERVER_ARGS
from tests.servers.serving import Server, Starter, ask, serve_prod, starter

PROBES = 400
HOLD_SECONDS = 3
MB = 1024 * 1024


def _p99(ask_once: Callable[[], object], count: int) -> tuple[float, float]:
    """Return median and p99 in milliseconds."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        ask_once()
        times.append((time.perf_counter() - begun) * 1e3)
        time.sleep(0.005)
    times.sort()
    return statistics.median(times), times[int(0.99 * (len(times) - 1))]


@contextmanager
def _load(server: Server, path: str, clients: int) -> Iterator[None]:
    """Keep every slot busy, and as many clients waiting."""
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            connection = server.connect()
            try:
                ask(connection, f"{path}?seconds={HOLD_SECONDS}")
            finally:
                connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    while json.loads(server.probe("/_health/capacity").body)["utilization"] < 1:
        time.sleep(0.05)
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _pss(server: Server, with_monitor: bool) -> float:
    """Return the sum of PSS in MB; to be rid of the monitor, the master is held meanwhile."""
    time.sleep(2)
    members = server.members()
    if with_monitor:
        return sum(member.memory_full_info().pss for member in members) / MB
    monitor = server.monitor
    os.kill(server.pid, signal.SIGSTOP)
    monitor.kill()
    while monitor.is_running() and monitor.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    others = [member for member in members if member.pid != monitor.pid]
    without = sum(member.memory_full_info().pss for member in others)
    os.kill(server.pid, signal.SIGCONT)
    return without / MB


def _added_pss(start: Starter, kind: str) -> float:
    """Return what a deployment with a health port in use needs more than one without a monitor."""
    command = serve_prod(*SERVER_ARGS[kind], app="busy:create_app")
    used = start(command, None, **PATH, NOW_LMS_HEALTH_PORT="0").await_ready()
    plain = start(command, None, **PATH)
    for server in (used, plain):
        for _ in range(200):
            server.get()
    for path in ("/live", "/ready", "/metrics", "/_health/capacity") * 50:
        used.probe(path)
    added = _pss(used, with_monitor=True) - _pss(plain, with_monitor=False)
    used.stop()
    plain.stop()
    return added


def _measure(start: Starter, kind: str) -> None:
    command = serve_prod(*SERVER_ARGS[kind], app="busy:create_app")
    server = start(command, None, **PATH, NOW_LMS_HEALTH_PORT="0").await_ready()
    _p99(lambda: server.probe("/live"), 50)
    idle = _p99(lambda: server.probe("/live"), PROBES)[1]
    for path in ("/wait", "/compute"):
        with _load(server, path, 8):
            middle, busy = _p99(lambda: server.probe("/live"), PROBES)
            inside = _p99(lambda: server.get("/_health/capacity"), 3)[1]
        aim = 2 * idle + 5
        print(
            f"{kind:<12} {path[1:]:<8} {idle:>8.1f} {middle:>8.1f} {busy:>8.1f} {aim:>8.1f} "
            f"{'yes' if busy <= aim else 'NO':>5} {inside:>12.0f}",
            flush=True,
        )
    server.stop()
    added = _added_pss(start, kind)
    print(f"{kind:<12} the health port adds {added:.1f} MB to the summed PSS", flush=True)


def main() -> None:
    """Print the table."""
    print(
        f"{'ms':<12} {'load':<8} {'idle p99':>8} {'busy p50':>8} {'busy p99':>8} {'aim':>8} "
        f"{'held':>5} {'app port p99':>12}"
    )
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        for kind in ("waitress", "sync", "gthread-2x2"):
            _measure(start, kind)


if __name__ == "__main__":
    main()
