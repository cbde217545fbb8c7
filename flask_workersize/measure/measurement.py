"""Measure what an app costs: a few hundred requests, seen from outside its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import WorkerSizeConfigError
from ..monitor.guard import WARM_REQUESTS
from ..sizing.growth import slope
from ..sizing.profile import Estimate, SizingProfile
from .load_test import Answers, LoadTest, WorkerState, load_test

ROUNDS = 10
"""Times that figures are taken: their spread is what one of them is worth."""

PHASE_SECONDS = 90.0
"""How long each of the two trials may ask, however slow the app is."""


@dataclass(frozen=True)
class MeasureRequest:
    """What is to be measured, and how.

    :param app: name of the app
    :param command: the command line of ``flask`` for it
    :param preload: whether it is loaded before the workers are forked
    :param paths: what is asked for, in turn
    :param requests: requests of each of the two trials
    :param threads: threads of the second one, which get as many requests at once
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
        trials = 1 if self.threads == 1 else 2
        return trials * self.requests + WARM_REQUESTS


@dataclass
class _Seen:
    """What the first trial has seen."""

    boot: list[float]
    warm: list[float]
    cpu_ms: list[float] = field(default_factory=list)
    wait_ms: list[float] = field(default_factory=list)
    growth: list[tuple[int, float]] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    shared: list[float] = field(default_factory=list)


def measure(
    task: MeasureRequest, done: Callable[[int], object]
) -> tuple[SizingProfile, list[Answers]]:
    """Serve an app twice, ask it, and return what it costs.

    First two workers of one thread are asked one request after the other: so neither waits for the
    other, and what is not computing is waiting. Then one worker with threads is asked by as many
    clients at once: what it needs more is the memory of its threads, and what it computes is what
    a request costs a server that does not rest between two of them.

    :param task: what to measure
    :param done: called with the number of requests that were answered since
    :returns: the profile, and what was answered in each trial
    :raises WorkerSizeStartError: if the app does not start, or ends meanwhile
    :raises WorkerSizeConfigError: if no path gives an answer to measure with
    """
    with load_test(task.command, 2, 1, task.paths) as first:
        seen = _one_by_one(first, task, done)
    growth = slope(seen.growth)
    answers, threads = [first.answers], [0.0]
    if task.threads > 1:
        with load_test(task.command, 1, task.threads, task.paths) as second:
            most, loaded = _at_once(second, task, done)
        # What a leak has added there, where one worker had all requests, no thread needs.
        most -= growth.each * task.requests if growth.is_sure else 0.0
        threads = [max(most - peak, 0.0) / (task.threads - 1) for peak in seen.peak]
        seen.cpu_ms = loaded or seen.cpu_ms
        answers.append(second.answers)
    profile = SizingProfile.made_now(
        "measure",
        task.app,
        "gunicorn",
        preload=task.preload,
        requests=sum(item.good for item in answers),
        shared_mb=Estimate.of(seen.shared, max(seen.shared)),
        boot_mb=Estimate.of(seen.boot),
        warm_mb=Estimate.of(seen.warm),
        peak_mb=Estimate.of(seen.peak, max(seen.peak)),
        # Above the largest of those with one thread, as the plan counts it.
        thread_mb=Estimate.of(threads, min(threads)),
        growth_mb=Estimate.around(1000 * growth.each, 1000 * growth.error),
        grows=growth.is_sure,
        cpu_ms=Estimate.of(seen.cpu_ms),
        wait_ms=Estimate.of(seen.wait_ms),
    )
    return profile, answers


def _one_by_one(server: LoadTest, task: MeasureRequest, done: Callable[[int], object]) -> _Seen:
    boot = [worker.private_mb for worker in server.workers()]
    server.ask(WARM_REQUESTS, 1, done)
    check(server.answers)
    seen = _Seen(boot, [worker.private_mb for worker in server.workers() if worker.served])
    begun = time.monotonic()
    before = server.workers()
    for count in _parts(task.requests):
        server.ask(count, 1, done)
        now = server.workers()
        _compare(before, now, seen)
        seen.shared.append(server.shared_mb())
        before = now
        if time.monotonic() > begun + PHASE_SECONDS:
            break
    check(server.answers)
    seen.peak = [worker.peak_mb for worker in before if worker.served]
    if not (seen.cpu_ms and seen.warm and seen.peak and seen.boot):
        raise WorkerSizeConfigError(
            "The workers end after a few requests each, so nothing can be measured: leave out "
            "max_requests while measuring."
        )
    return seen


def _compare(before: list[WorkerState], now: list[WorkerState], seen: _Seen) -> None:
    """Take down what the requests between two looks have cost, by workers that live on."""
    pairs = _pairs(before, now)
    served = sum(b.served - a.served for a, b in pairs)
    if not served:
        return
    cpu = sum(b.cpu_seconds - a.cpu_seconds for a, b in pairs)
    busy = sum(b.busy_seconds - a.busy_seconds for a, b in pairs)
    seen.cpu_ms.append(1000 * cpu / served)
    seen.wait_ms.append(1000 * max(busy - cpu, 0.0) / served)
    # What both have had more is what the requests of both have added.
    if len(pairs) == len(now):
        own = sum(worker.private_mb for worker in now)
        seen.growth.append((sum(worker.served for worker in now), own))


def _at_once(
    server: LoadTest, task: MeasureRequest, done: Callable[[int], object]
) -> tuple[float, list[float]]:
    """Return the most memory of a worker with threads, and CPU time of a request, in each part."""
    begun = time.monotonic()
    before, most = server.workers(), 0.0
    computed = []
    for count in _parts(task.requests):
        server.ask(count, task.threads, done)
        now = server.workers()
        most = max([most, *(worker.peak_mb for worker in now)])
        pairs = _pairs(before, now)
        served = sum(b.served - a.served for a, b in pairs)
        if served:
            cpu = sum(b.process_seconds - a.process_seconds for a, b in pairs)
            computed.append(1000 * cpu / served)
        before = now
        if time.monotonic() > begun + PHASE_SECONDS:
            break
    # The first requests fill caches.
    return most, computed[1:] or computed


def _pairs(
    before: list[WorkerState], now: list[WorkerState]
) -> list[tuple[WorkerState, WorkerState]]:
    """Return what was and what is of each worker that lives on."""
    first = {worker.pid: worker for worker in before}
    return [(first[worker.pid], worker) for worker in now if worker.pid in first]


def _parts(requests: int) -> Iterable[int]:
    """Divide requests into as many parts as figures are taken, at least one in each."""
    parts = min(ROUNDS, requests)
    for number in range(parts):
        yield requests * (number + 1) // parts - requests * number // parts


_NO_PAGE = "There is no such page: choose paths that exist with --path."
_OTHER = "The app refuses that: choose paths that it answers to everybody with --path."
_REASONS = {
    404: _NO_PAGE,
    410: _NO_PAGE,
    400: "The app refuses that: perhaps it does not trust the host 127.0.0.1.",
    429: "The app limits how often it may be asked: measure without that limit.",
}


def check(answers: Answers) -> None:
    """Refuse to measure a path that never answers: what it costs would not be what users get.

    :raises WorkerSizeConfigError: saying in one line what came instead
    """
    if not answers.useless:
        return
    paths = ", ".join(answers.useless)
    statuses = {status for path in answers.useless for status in answers.statuses.get(path, ())}
    what = ", ".join(map(str, sorted(statuses))) or "nothing"
    moved_to = [answers.moved_to[path] for path in answers.useless if path in answers.moved_to]
    why = "The server hangs up: see what it says under flask serve-prod."
    if statuses & {401, 403} or any("login" in place for place in moved_to):
        why = "That needs a login: choose paths that are open with --path."
    elif statuses and max(statuses) >= 500:
        why = "The app fails: see what it says under flask serve-prod."
    elif statuses and min(statuses) < 400:
        led = "".join(moved_to[:1]).split("?")[0]
        why = f"That leads elsewhere{f' ({led})' if led else ''}: choose where to with --path."
        if led.startswith("https:"):
            why = (
                "The app insists on https, which the server before it has: let it do without here."
            )
    elif statuses:
        why = next((_REASONS[status] for status in sorted(statuses) if status in _REASONS), _OTHER)
    raise WorkerSizeConfigError(f"Nothing to measure: {paths} answered {what}. {why}")
