"""What the monitor costs: its CPU time beside 64 workers, at rest and near the memory limit.

``python -m tests.benchmarks.bench_monitor`` prints a table; near the limit it needs a control group
of its own, so root. The aim is below 1 % of a CPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.resources.real_groups import RealGroup, real_group
from tests.servers.clients import PATH
from tests.servers.serving import Server, Starter, serve_prod, starter
from tests.servers.test_memory_holders import neighbour

WORKERS = 64
SECONDS = 20
SETTLE_SECONDS = 25
"""Until every worker was measured once, which happens one after the other."""

GROUPS = [
    ("a group, {:.0%} of its memory used", "busy", 0.55, 0.55),
    ("a group, {:.0%} of its memory used", "busy", 0.3, 0.3),
    ("the same, it comes and goes", "bursting", 0.3, 0.3),
    ("{:.0%}, and it comes and goes", "bursting", 0.6, 0.6),
    ("{:.0%}, most of it a neighbour's", "bursting", 0.3, 0.94),
]
"""Name of the row, app, share of the limit that the server uses, and that is used in all."""


def _cpu_percent(server: Server) -> float:
    """Return the share of one CPU that the monitor takes."""
    time.sleep(SETTLE_SECONDS)
    begun, before = time.monotonic(), server.monitor.cpu_times()
    time.sleep(SECONDS)
    after = server.monitor.cpu_times()
    used = after.user + after.system - before.user - before.system
    return 100 * used / (time.monotonic() - begun)


def _start(start: Starter, group: RealGroup | None, app: str = "busy") -> Server:
    command = serve_prod("--workers", str(WORKERS), server="gunicorn", app=f"{app}:create_app")
    if group is not None:
        command = group.command(command)
    return start(command, None, **PATH, NOW_LMS_HEALTH_PORT="0").await_ready()


def _used_mb(server: Server) -> int:
    """Return the most that is used in some seconds."""
    most = 0
    for _ in range(20):
        time.sleep(0.2)
        most = max(most, int(server.live_report()["memory_used_mb"]))
    return most


def main() -> None:
    """Print the table."""
    print(f"{'beside ' + str(WORKERS) + ' workers':<40} {'% of one CPU':>12}")
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        if not sys.argv[1:]:
            server = _start(start, None)
            print(f"{'the machine is the limit':<40} {_cpu_percent(server):>12.2f}", flush=True)
            server.stop()
        for name, app, ours, used in GROUPS:
            if sys.argv[1:] and app not in sys.argv[1:]:
                continue
            with ExitStack() as stack:
                group = stack.enter_context(real_group())
                group.limit_memory(4096)
                server = _start(start, group, app)
                limit = int(_used_mb(server) / ours)
                group.limit_memory(limit)
                if used > ours:
                    stack.enter_context(neighbour(group, int((used - ours) * limit), 300))
                time.sleep(3)
                percent = _cpu_percent(server)
                print(f"{name.format(used):<40} {percent:>12.2f}", flush=True)
                live = server.live_report()
                assert live["workers_alive"] == WORKERS, live
                server.stop()
                server.close()


if __name__ == "__main__":
    main()
