"""What workers and threads follow from what was measured; pure.

The number of requests that should run at once to keep the CPUs busy is, after Goetz ("Java
Concurrency in Practice", section 8.2, "Sizing thread pools")::

    slots = CPUs × (1 + waiting time / computing time)

An app that computes only needs as many as there are CPUs; one that waits nine tenths of its time
needs ten times as many. The guide says the same in words ("I/O-Bound vs CPU-Bound"): threads for
what waits, workers for what computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..resources import Resources
from .plan import MB
from .profile import AppCosts
from .settings import SizingSettings
from .validators import ServerName

SPARE = 2.0
"""Times as many threads as the formula asks for: connections spread unevenly over the workers, and
a busy machine measures more CPU time than a request takes. Too many cost little, too few a lot."""

SPARE_WORKERS = 1.5
"""The same for workers of one thread: each request goes to one that is free."""

WAITING_SHARE = 1.25
"""Slots for each CPU above which a worker that is missing is replaced by threads: an app that only
computes would get nothing from them."""

MOST_THREADS = 64
"""Most threads of a worker: more have no CPU to run on, and make each request later."""

_LEAST_COMPUTING_MS = 0.5
"""CPU time that any request takes: below that the clock and the server are measured."""


@dataclass(frozen=True)
class Advice:
    """Workers and threads that keep the CPUs busy."""

    server: ServerName
    workers: int
    threads: int
    slots: float
    is_short: bool

    def dotenv_lines(self) -> list[str]:
        """Return the lines for .env: for another server the numbers would be others."""
        return [f"NOW_LMS_WSGI_SERVER={self.server}", *self.lines()]

    def lines(self) -> list[str]:
        """Return the lines to set for the server that it is for."""
        workers = [] if self.server == "waitress" else [f"NOW_LMS_WORKERS={self.workers}"]
        return [*workers, f"NOW_LMS_THREADS={self.threads}"]


def slots_of(costs: AppCosts, cpus: float) -> float:
    """Return how many requests should run at once: CPUs × (1 + waiting / computing).

    :param costs: what the app costs
    :param cpus: CPUs, a quota included
    """
    return cpus * (1 + costs.wait_ms / max(costs.cpu_ms, _LEAST_COMPUTING_MS))


def advise(
    costs: AppCosts, settings: SizingSettings, resources: Resources, server: ServerName
) -> Advice:
    """Propose workers and threads.

    Where the plan's workers of one thread are enough, they are the proposal: a process for each
    request is what computes best. Else there are few workers, since each needs memory, and as many
    threads as the slots need.

    :param costs: what the app costs
    :param settings: the operator's settings; of these the headroom beside a profile, and the
        most workers
    :param resources: the machine's resources
    :param server: "gunicorn" or "waitress", whose one process computes on one CPU at a time
    """
    cpus = min(resources.cpus, 1.0) if server == "waitress" else resources.cpus
    slots = slots_of(costs, cpus)
    most = math.floor(2 * resources.cpus) + 1
    if settings.max_workers is not None and server == "gunicorn":
        most = min(most, settings.max_workers)
    share = 100 - settings.measured_headroom_percent
    usable_mb = resources.memory_available * share // 100 // MB

    def fits(workers: int, threads: int) -> bool:
        return costs.shared_mb + workers * costs.private_mb(threads) <= usable_mb

    workers, threads = wanted = _shape(slots, most, resources.cpus, server)
    while not fits(workers, threads) and workers > 1:
        workers -= 1
        if slots > WAITING_SHARE * cpus:
            threads = _threads(slots, workers)
    while not fits(workers, threads) and threads > 1:
        threads -= 1
    is_short = (workers, threads) != wanted and workers * threads < slots
    return Advice(server, workers, threads, slots, is_short)


def _shape(slots: float, most: int, cpus: float, server: ServerName) -> tuple[int, int]:
    """Return workers and threads where there is memory enough."""
    if server == "waitress":
        return 1, max(most, _threads(slots, 1))
    if slots * SPARE_WORKERS <= most:
        return most, 1
    workers = min(2 * math.ceil(cpus), most)
    return workers, _threads(slots, workers)


def _threads(slots: float, workers: int) -> int:
    return min(MOST_THREADS, math.ceil(slots * SPARE / workers))
