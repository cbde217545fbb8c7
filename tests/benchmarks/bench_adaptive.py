"""A size that follows the load: how it takes changes of the load, and how it keeps still.

``python -m tests.benchmarks.bench_adaptive`` serves an app of known cost on 2 CPUs in 512 MB and
changes what is asked for every 30 s: computing, waiting, both, nothing, computing. The last 15 s of
each phase are compared with the best of the fixed shapes of bench_regret for that phase, served
in the same run. ``--quiet MINUTES`` keeps one load steady for so long instead, and lists the moves.

It needs root, for the groups, and ``wrk``. The load is 64 clients.
"""

from __future__ import annotations

import argparse
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.bench_memory import (
    await_answer,
    free_port,
    limited,
    load,
    require_wrk_and_root,
)
from tests.benchmarks.bench_regret import ADAPTIVE, APP, CLIENTS, LATE_SECONDS, Bench, Place, Shape
from tests.servers.serving import Server, Starter, serve_prod, starter

CPUS, LIMIT_MB = 2, 512
PHASES = ("cpu", "wait", "both", "", "cpu")
PHASE_SECONDS, FIRST_SECONDS = 30, 15
FIXED: dict[str, tuple[Shape, ...]] = {
    "cpu": ((2, 1), (5, 1)),
    "wait": ((3, 32), (2, 64)),
    "both": ((2, 8), (3, 32)),
}
"""The shapes that bench_regret found best here, and one more that was near."""

AIM = 0.9


def served(
    start: Starter, bench: Bench, use: Callable[[int, Callable[[], list[str]]], None]
) -> Server:
    """Serve with a size that follows the load; ``use`` gets the port and a reader of the moves."""
    port = free_port()
    command = serve_prod("--bind", f"127.0.0.1:{port}", server="gunicorn", app=APP)
    with limited(start, LIMIT_MB) as group:
        group.limit_cpus(CPUS)
        environ = {**bench.environ("off"), "NOW_LMS_SIZING": ADAPTIVE}
        server = start.launch(group.command(command), None, **environ)
        await_answer(server, port)
        use(port, lambda: re.findall(r"size: .*", server.stderr))
        server.signal(signal.SIGTERM)
        server.process.wait(LATE_SECONDS)
    return server


def changing(start: Starter, bench: Bench) -> bool:
    """Change the load, print each phase beside its best shape; return whether all reach the aim."""
    best = {}
    for app, shapes in FIXED.items():
        for shape in shapes:
            bench.run(Place(app, CPUS, LIMIT_MB), shape)
        rates = {shape: bench.once(Place(app, CPUS, LIMIT_MB), shape).rate for shape in shapes}
        best[app] = max(rates.items(), key=lambda item: item[1])
    shares = []

    def use(port: int, moves: Callable[[], list[str]]) -> None:
        seen = 0
        print(
            f"{'phase':<8}{'requests/s':>12}{'best shape':>12}{'its rate':>10}{'share':>8}  moves"
        )
        for app in PHASES:
            begun = time.monotonic()
            if app:
                load(port, app, FIRST_SECONDS, CLIENTS, LATE_SECONDS)
                rest = PHASE_SECONDS - (time.monotonic() - begun)
                told = load(port, app, round(rest), CLIENTS, LATE_SECONDS)
                shape, rate = best[app]
                shares.append(told.rate / rate)
                cells = f"{told.rate:>12.0f}{f'{shape[0]} × {shape[1]}':>12}{rate:>10.0f}"
                print(f"{app:<8}{cells}{shares[-1]:>8.2f}", end="")
            else:
                time.sleep(PHASE_SECONDS)
                print(f"{'idle':<8}{'':>42}", end="")
            now = moves()
            print("  " + ("\n" + 52 * " ").join(now[seen:]), flush=True)
            seen = len(now)

    served(start, bench, use)
    return min(shares) >= AIM


def quiet(start: Starter, bench: Bench, app: str, minutes: float) -> None:
    """Keep one load steady, and print the moves."""

    def use(port: int, moves: Callable[[], list[str]]) -> None:
        begun, seen = time.monotonic(), 0
        while (passed := time.monotonic() - begun) < 60 * minutes:
            left = 60 * minutes - passed
            told = load(port, app, max(1, min(30, round(left))), CLIENTS, LATE_SECONDS)
            for move in moves()[seen:]:
                print(f"{passed / 60:5.1f} min  {told.rate:6.0f} requests/s  {move}", flush=True)
            seen = len(moves())
        print(f"{seen} moves in {minutes:g} minutes; {told.rate:.0f} requests/s at the end")

    served(start, bench, use)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_adaptive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quiet", type=float, metavar="MINUTES", help="one steady load")
    parser.add_argument("--app", choices=FIXED, default="both", help="its app (default: both)")
    args = parser.parse_args()
    require_wrk_and_root()
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        bench = Bench(start, Path(folder), seconds=5)
        if args.quiet:
            quiet(start, bench, args.app, args.quiet)
        elif not changing(start, bench):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
