"""What a report costs, at 4, 64 and 256 workers.

``python -m tests.benchmarks.bench_report`` prints the time of reading the table, and of a whole
report with its rows, each also divided by the number of workers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from flask_workersize import (
    CapacityReport,
    HostFacts,
    SizingSettings,
    compute_plan,
    detect_resources,
)
from flask_workersize.resources.processes import ProcessMemory, ResidentPeak
from flask_workersize.runtime.scoreboard import Scoreboard

ROWS = (4, 64, 256)
GB = 1024**3
SAMPLE = ProcessMemory(50_000_000, 20_000_000, 10_000_000)


def _microseconds(work: Callable[[], object]) -> float:
    def once() -> float:
        begun = time.perf_counter()
        for _ in range(20):
            work()
        return (time.perf_counter() - begun) / 20 * 1e6

    return statistics.median(once() for _ in range(9))


def main() -> None:
    """Print the table."""
    print(f"{'workers':>8} {'table µs':>9} {'a worker':>9} {'report µs':>10} {'a worker':>9}")
    for count in ROWS:
        board = Scoreboard(workers=count, threads=1)
        for age in range(1, count + 1):
            row = board.allocate(age)
            assert row is not None
            row.enter()
            row.set_ready()
            board.note_memory(age - 1, SAMPLE, ResidentPeak(), 0, is_warm=False)
        host = HostFacts(count, None, 64 * GB, 64 * GB, "win32")
        plan = compute_plan(SizingSettings(workers=count), detect_resources(host), "gunicorn")

        def report(board: Scoreboard = board, plan: object = plan) -> str:
            made = CapacityReport.of(plan, serving=True, details=True, now=board.read())  # type: ignore[arg-type]
            return made.to_json()

        table, whole = _microseconds(board.read), _microseconds(report)
        print(
            f"{count:>8} {table:>9.0f} {table / count:>9.1f} {whole:>10.0f} {whole / count:>9.1f}"
        )


if __name__ == "__main__":
    main()
