"""What a stop loses: SIGTERM under the load of 12 clients, ours against each server alone.

``python -m tests.benchmarks.bench_stop`` prints a table. A client is lost that had a connection
and got no answer; the rest were turned away before they had one.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.servers.clients import PATH, SERVER_ARGS, SLOW, load
from tests.servers.serving import Starter, await_that, gunicorn, serve_prod, starter

RUNS = 5
CLIENTS = 12

WAITRESS_ALONE = (
    "import logging, waitress; from slow import create_app; logging.basicConfig(level='INFO'); "
    "waitress.serve(create_app(), listen='127.0.0.1:0', threads=4)"
)
COMMANDS: Mapping[str, list[str]] = {
    "gunicorn sync, 4 workers": gunicorn("-w", "4", app=f"{SLOW}()"),
    "  serve-prod, the same": serve_prod(*SERVER_ARGS["sync"], app=SLOW),
    "gunicorn gthread, 2 × 2": gunicorn("-w", "2", "--threads", "2", app=f"{SLOW}()"),
    "  serve-prod, the same ": serve_prod(*SERVER_ARGS["gthread-2x2"], app=SLOW),
    "waitress, 4 threads": [sys.executable, "-c", WAITRESS_ALONE],
    "  serve-prod, the same  ": serve_prod(*SERVER_ARGS["waitress"], app=SLOW),
}


def stop_under_load(start: Starter, command: list[str], keep: bool) -> tuple[int, int, float]:
    """Return clients that were lost, the exit status and the seconds that the stop took."""
    server = start(command, None, **PATH)
    with load(server, [keep] * CLIENTS) as result:
        await_that(lambda: result.answered > 20 * CLIENTS, "a load")
        begun = time.monotonic()
        status = server.stop()
        seconds = time.monotonic() - begun
    return len(result.lost), status, seconds


def main() -> None:
    """Stop each server in turn, several times, and print what was lost."""
    print(f"{'SIGTERM under 12 clients, 5 runs':<34} {'lost':>14} {'kept, lost':>14} status   s")
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        for name, command in COMMANDS.items():
            new = [stop_under_load(start, command, keep=False) for _ in range(RUNS)]
            kept = [stop_under_load(start, command, keep=True) for _ in range(RUNS)]
            lost = [" ".join(str(run[0]) for run in runs) for runs in (new, kept)]
            status = {run[1] for run in (*new, *kept)}
            seconds = statistics.median(run[2] for run in (*new, *kept))
            statuses = ",".join(map(str, sorted(status)))
            print(f"{name:<34} {lost[0]:>14} {lost[1]:>14} {statuses:>6} {seconds:>5.1f}")


if __name__ == "__main__":
    main()
