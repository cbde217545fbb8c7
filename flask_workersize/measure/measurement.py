"""Measure what an app costs: a few hundred requests, counted as those of real traffic are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import WorkerSizeConfigError
from ..monitor.guard import WARM_REQUESTS
from ..monitor.learning import TrafficMeter
from ..sizing.plan import MB
from ..sizing.profile import Estimate, SizingProfile
from .load_test import SUCCESS, Answers, LoadTest, load_test

ROUNDS = 10
"""Times that figures are taken of one-threaded workers: their spread is what one is worth."""

LOADED_ROUNDS = 4
"""The same of the worker with threads, of which fewer figures are used."""

ROUND_REQUESTS = 8
"""Requests in each round at least: the memory of each worker is sampled after it."""

PHASE_SECONDS = 90.0
"""How long each of the two load tests may send, however slow the app is."""


@dataclass(frozen=True)
class MeasureRequest:
    """What to measure, and how.

    Each of the two load tests sends ``requests``; ``threads`` of the second get as many at once.
    """

    app: str
    command: Sequence[str]
    preload: bool
    paths: Sequence[str]
    requests: int
    threads: int

    @property
    def length(self) -> int:
        """Requests in all."""
        tests = 1 if self.threads == 1 else 2
        return tests * self.requests + 2 * WARM_REQUESTS


def measure(
    task: MeasureRequest, done: Callable[[int], object]
) -> tuple[SizingProfile, list[Answers]]:
    """Serve an app twice, send it requests, and return what it costs, and what was answered.

    First two workers of one thread get one request after the other: neither waits for the other,
    and what is not computing is waiting. Then one worker with threads gets as many requests at
    once: what it needs more is the memory of its threads, and what it computes is what a request
    costs a server that does not rest between two of them. ``done`` counts the answers.
    """
    meter, threaded = TrafficMeter(), TrafficMeter()
    with load_test(task.command, 2, 1, task.paths) as first:
        first.send(2 * WARM_REQUESTS, 1, done)
        check(first.answers)
        _observe(first, meter, _parts(task.requests, ROUNDS), 1, done)
        check(first.answers)
    if not (meter.cpu_ms and meter.peaks_mb()):
        raise WorkerSizeConfigError(
            "Workers exit after a few requests each: unset max_requests while measuring."
        )
    answers, thread_mb = [first.answers], [0.0]
    if task.threads > 1:
        with load_test(task.command, 1, task.threads, task.paths) as second:
            parts = _parts(task.requests, LOADED_ROUNDS)
            _observe(second, threaded, parts, task.threads, done)
        answers.append(second.answers)
        thread_mb = _thread_mb(meter, threaded, task)
    profile = meter.profile("measure", task.app, "gunicorn", task.preload, thread_mb)
    # The first requests of threads fill caches.
    loaded = list(threaded.cpu_ms)[1:] or list(threaded.cpu_ms)
    found: dict[str, Any] = {"requests": sum(item.good for item in answers)}
    if loaded:
        found["cpu_ms"] = Estimate.of(loaded)
    return profile.model_copy(update=found), answers


def _observe(
    server: LoadTest,
    meter: TrafficMeter,
    parts: Iterable[int],
    clients: int,
    done: Callable[[int], object],
) -> None:
    server.observe(meter)
    deadline = time.monotonic() + PHASE_SECONDS
    for count in parts:
        server.send(count, clients, done)
        server.observe(meter)
        if time.monotonic() > deadline:
            break


def _thread_mb(meter: TrafficMeter, threaded: TrafficMeter, task: MeasureRequest) -> list[float]:
    """Return what a thread needs, compared with each single-threaded worker."""
    growth = meter.growth()
    most = max((item.peak_bytes / MB for item in threaded.workers.values()), default=0.0)
    # What a leak has added there, where one worker had all requests, no thread needs.
    most -= growth.each * task.requests if growth.is_sure else 0.0
    return [max(most - peak, 0.0) / (task.threads - 1) for peak in meter.peaks_mb()]


def _parts(requests: int, most: int) -> Iterable[int]:
    """Divide requests into parts, after each of which figures are taken."""
    parts = max(1, min(most, requests // ROUND_REQUESTS))
    for number in range(parts):
        yield requests * (number + 1) // parts - requests * number // parts


_REASONS = {
    404: "No such page: choose other paths with --path.",
    410: "No such page: choose other paths with --path.",
    400: "The app refuses the request: perhaps it does not trust the host 127.0.0.1.",
    429: "The app has a rate limit: turn it off while measuring.",
}


def check(answers: Answers) -> None:
    """Refuse to measure a path without a successful answer: its cost would mean nothing."""
    useful = {path for path, status in answers.counts if status in SUCCESS}
    useless = list(dict.fromkeys(path for path, _ in answers.counts if path not in useful))
    if not useless:
        return
    statuses = sorted({status for path, status in answers.counts if path in useless and status})
    moved_to = next((answers.moved_to[p] for p in useless if p in answers.moved_to), "")
    what = f"{', '.join(useless)} answered {', '.join(map(str, statuses)) or 'nothing'}"
    raise WorkerSizeConfigError(f"Nothing to measure: {what}. {_why(statuses, moved_to)}")


def _why(statuses: Sequence[int], moved_to: str) -> str:
    if 401 in statuses or 403 in statuses or "login" in moved_to:
        return "A login is required: choose open paths with --path."
    if not statuses:
        return "The server closes the connection: see its log under flask serve-prod."
    if statuses[-1] >= 500:
        return "The app fails: see its log under flask serve-prod."
    if moved_to.startswith("https:"):
        return "The app redirects to https: turn that off while measuring."
    if statuses[0] < 400:
        address = moved_to.partition("?")[0] or "no address"
        return f"The path redirects to {address}: choose another path with --path."
    reasons = [_REASONS[status] for status in statuses if status in _REASONS]
    return next(iter(reasons), "The app refuses the request: choose other paths with --path.")
