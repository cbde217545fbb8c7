"""What the monitor costs: its CPU time beside 64 workers, at rest and near the memory limit.

``python -m tests.benchmarks.bench_monitor`` prints a table; near the limit it needs a control group
of its own, so root.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.resources.real_groups import RealGroup, real_group
from tests.servers.clients import PATH
from tests.servers.serving import Server, Starter, serve_prod, starter

WORKERS = 64
SECONDS = 20
SETTLE_SECONDS = 25
"""Until every worker was measured once, which happens one after the other."""

SHARES = (0.55, 0.3)
"""How much of the limit is used: above and below where memory is read often."""


def _cpu_percent(server: Server) -> float:
    """Return the share of one CPU that the monitor takes."""
    time.sleep(SETTLE_SECONDS)
    begun, before = time.monotonic(), server.monitor.cpu_times()
    time.sleep(SECONDS)
    after = server.monitor.cpu_times()
    used = after.user + after.system - before.user - before.system
    return 100 * used / (time.monotonic() - begun)


def _start(start: Starter, group: RealGroup | None) -> Server:
    command = serve_prod("--workers", str(WORKERS), server="gunicorn", app="busy:create_app")
    if group is not None:
        command = group.command(command)
    return start(command, None, **PATH, NOW_LMS_HEALTH_PORT="0").await_ready()


def main() -> None:
    """Print the table."""
    print(f"{'beside ' + str(WORKERS) + ' workers':<34} {'% of one CPU':>12}")
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        server = _start(start, None)
        print(f"{'the machine is the limit':<34} {_cpu_percent(server):>12.2f}", flush=True)
        server.stop()
        for share in SHARES:
            with ExitStack() as stack:
                group = stack.enter_context(real_group())
                group.limit_memory(2048)
                server = _start(start, group)
                used = server.live_report()["memory_used_mb"]
                group.limit_memory(int(used / share))
                time.sleep(3)
                name = f"a group, {share:.0%} of its memory used"
                print(f"{name:<34} {_cpu_percent(server):>12.2f}", flush=True)
                server.stop()
                server.close()


if __name__ == "__main__":
    main()
