"""What a detection costs, against one reading of the files it needs.

``python -m tests.benchmarks.bench_detection`` prints a table. The two are timed in turn, and each
round twice, so that the A/A rows show what a ratio of this machine is worth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from flask_workersize import HostFacts, detect_resources
from flask_workersize.resources.files import RealFiles

ROUNDS = 2_000
MEMINFO = "/proc/meminfo"


class Recorder(RealFiles):
    """The real files, and which of them were read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def read_text(self, path: str) -> str:
        text = super().read_text(path)
        self.read.append(path)
        return text


def files_needed() -> list[str]:
    """Return the files that a detection reads on this machine, those of the host included."""
    recorder = Recorder()
    detect_resources(files=recorder)
    return [MEMINFO, *recorder.read]


def milliseconds(action: Callable[[], object]) -> float:
    """Return how long an action took."""
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1_000


def main() -> None:
    """Measure, and print the table."""
    needed, host, files = files_needed(), HostFacts.read(), RealFiles()

    def read_once() -> None:
        for path in needed:
            files.read_text(path)

    actions: dict[str, Callable[[], object]] = {
        "one reading of the files (A)": read_once,
        "the same (A)": read_once,
        "detect_resources() (B)": detect_resources,
        "the same (B)": detect_resources,
        "control groups alone": lambda: detect_resources(host),
        "figures of the host alone": HostFacts.read,
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            times[name].append(milliseconds(action))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    base = next(iter(medians.values()))
    print(f"{len(needed)} files, {ROUNDS} rounds")
    print(f"{'':<30} {'median':>9} {'99 %':>9} {'ratio':>6}")
    for name, median in medians.items():
        late = statistics.quantiles(times[name], n=100)[-1]
        print(f"{name:<30} {median:>6.3f} ms {late:>6.3f} ms {median / base:>6.2f}")


if __name__ == "__main__":
    main()
