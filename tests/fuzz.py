"""Run the fuzz test of settings and detection together with many inputs, and say how it went.

``python -m tests.fuzz 100000`` shares them among all CPUs.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings

from flask_workersize import HostFacts
from tests.resources.strategies import hosts, unreadables
from tests.test_fuzz_together import environs, files, other_hosts, plan_or_line


def run(number: int, count: int) -> Counter[str]:
    """Run that many inputs, and return how many of them ended how.

    :param number: seed; another one gives other inputs
    :raises AssertionError: or whatever an input raises, shrunk to the smallest that does
    """
    ends: Counter[str] = Counter()

    @seed(number)
    @settings(
        deadline=None,
        max_examples=count,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(environs, hosts | other_hosts, files, unreadables)
    def one(
        environ: dict[str, str], host: HostFacts, files: dict[str, str], unreadable: set[str]
    ) -> None:
        plan = plan_or_line(environ, host, files, unreadable)
        ends["refused" if plan is None else plan.limited_by] += 1

    one()
    return ends


def main() -> None:
    """Print one line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    cpus = psutil.cpu_count() or 1
    begin = time.monotonic()
    with ProcessPoolExecutor(cpus) as pool:
        shares = [-(-count // cpus)] * cpus
        ends: Counter[str] = sum(pool.map(run, range(cpus), shares), Counter())
    seconds = time.monotonic() - begin
    listed = ", ".join(f"{end} {number}" for end, number in ends.most_common())
    print(f"{ends.total()} inputs in {seconds:.0f} s, no exception: {listed}")


if __name__ == "__main__":
    main()
