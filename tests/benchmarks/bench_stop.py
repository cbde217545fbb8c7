"""What a stop loses: SIGTERM under the load of 12 clients, ours against each server alone.

Ours also without CAP_NET_ADMIN, as in most units and containers (needs root and setpriv).

``python -m tests.benchmarks.bench_stop`` prints a table. A client is lost that had a connection
and got no answer; the rest were turned away before they had one.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.servers.clients import PATH, SERVER_ARGS, SLOW, load
from tests.servers.serving import (
    Starter,
    await_that,
    gunicorn,
    serve_prod,
    starter,
    without_net_admin,
)

RUNS = 5
CLIENTS = 12

WAITRESS_ALONE = (
    "import logging, waitress; from slow import create_app; logging.basicConfig(level='INFO'); "
    "waitress.serve(create_app(), listen='127.0.0.1:0', threads=4)"
)
ALONE: Mapping[str, tuple[str, list[str]]] = {
    "sync": ("gunicorn sync, 4 workers", gunicorn("-w", "4", app=f"{SLOW}()")),
    "gthread-2x2": (
        "gunicorn gthread, 2 × 2",
        gunicorn("-w", "2", "--threads", "2", app=f"{SLOW}()"),
    ),
    "waitress": ("waitress, 4 threads", [sys.executable, "-c", WAITRESS_ALONE]),
}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield what is compared, with its line in the table."""
    for kind, (name, alone) in ALONE.items():
        ours = serve_prod(*SERVER_ARGS[kind], app=SLOW)
        yield name, alone
        yield "  serve-prod, the same", ours
        yield "  serve-prod, no CAP_NET_ADMIN", without_net_admin(ours)


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
        for name, command in commands():
            new = [stop_under_load(start, command, keep=False) for _ in range(RUNS)]
            kept = [stop_under_load(start, command, keep=True) for _ in range(RUNS)]
            lost = [" ".join(str(run[0]) for run in runs) for runs in (new, kept)]
            status = {run[1] for run in (*new, *kept)}
            seconds = statistics.median(run[2] for run in (*new, *kept))
            statuses = ",".join(map(str, sorted(status)))
            print(f"{name:<34} {lost[0]:>14} {lost[1]:>14} {statuses:>6} {seconds:>5.1f}")


if __name__ == "__main__":
    main()
