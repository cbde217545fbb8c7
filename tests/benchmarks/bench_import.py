"""What ``import flask_workersize`` and ``init_app`` cost over the packages they need anyway.

``python -m tests.benchmarks.bench_import``
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15

NEEDED = "import flask, pydantic_settings, psutil"
CASES = {
    "needed packages (A)": NEEDED,
    "needed packages (A again)": NEEDED,
    "+ import flask_workersize": f"{NEEDED}, flask_workersize",
    "+ WorkerSizing(app)": (
        f"{NEEDED}, flask_workersize; flask_workersize.WorkerSizing(flask.Flask('bench'))"
    ),
    "needed, and an app": f"{NEEDED}; flask.Flask('bench')",
}


def main() -> None:
    """Time fresh interpreters in turn, and print medians and ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, code in CASES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[name].append(time.perf_counter() - start)
    baseline = statistics.median(seconds["needed packages (A)"])
    print(f"{'a fresh interpreter that does':<32} {'median ms':>10} {'ratio':>7}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:<32} {median * 1000:>10.1f} {median / baseline:>7.2f}")


if __name__ == "__main__":
    main()
