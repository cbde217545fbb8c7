"""Workers and threads from what was measured: CPUs × (1 + waiting / computing)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.sizing.advice import MOST_THREADS, SPARE, Advice, advise, slots_of
from flask_workersize.sizing.profile import AppCosts
from flask_workersize.sizing.validators import ServerName
from tests.plain import load, resources, untimed


def costs(
    cpu: float, wait: float, own: float = 10, thread: float = 0.2, shared: int = 50
) -> AppCosts:
    """Return what an app costs; times in milliseconds, memory in MB."""
    return AppCosts(shared, own, thread, cpu, wait)


def advice(
    app: AppCosts, cpus: float = 1, memory_mb: int = 1024, server: ServerName = "gunicorn"
) -> Advice:
    """Return the proposal for an app on a machine of which nothing is left alone."""
    settings = load({"NOW_LMS_MEMORY_HEADROOM_PERCENT": "0"})
    return advise(app, settings, resources(cpus, memory_mb), server)


@pytest.mark.parametrize(
    ("cpu", "wait", "cpus", "slots"),
    [
        (10, 0, 1, 1),
        (10, 0, 2, 2),
        (5, 45, 1, 10),
        (5, 45, 2, 20),
        (1, 49, 0.5, 25),
        (10, 10, 4, 8),
    ],
)
def test_slots_are_cpus_times_one_plus_waiting_by_computing(
    cpu: float, wait: float, cpus: float, slots: float
) -> None:
    assert slots_of(costs(cpu, wait), cpus) == pytest.approx(slots)


@pytest.mark.parametrize(
    ("cpu", "wait", "cpus", "shape"),
    [
        (10, 0, 1, (3, 1)),
        (10, 0, 2, (5, 1)),
        (10, 2, 2, (5, 1)),
        (5, 5, 1, (3, 1)),
        (5, 5, 2, (4, 2)),
        (5, 45, 1, (2, 10)),
        (5, 45, 2, (4, 10)),
        (1, 49, 1, (2, 50)),
    ],
)
def test_what_computes_gets_processes_and_what_waits_gets_threads(
    cpu: float, wait: float, cpus: float, shape: tuple[int, int]
) -> None:
    made = advice(costs(cpu, wait), cpus)
    assert (made.workers, made.threads) == shape
    assert not made.is_short


def test_lines_are_those_of_the_settings() -> None:
    assert advice(costs(5, 45)).lines() == ["NOW_LMS_WORKERS=2", "NOW_LMS_THREADS=10"]


@pytest.mark.parametrize(("cpu", "wait", "threads"), [(10, 0, 5), (5, 45, 20), (1, 999, 64)])
def test_waitress_gets_threads_for_the_one_cpu_that_it_computes_on(
    cpu: float, wait: float, threads: int
) -> None:
    """At least as many as the guide gives it on two CPUs."""
    made = advice(costs(cpu, wait), cpus=2, server="waitress")
    assert made.lines() == [f"NOW_LMS_THREADS={threads}"]
    assert not made.is_short


def test_most_workers_are_no_more_than_is_allowed() -> None:
    settings = load({"NOW_LMS_MAX_WORKERS": "2"})
    made = advise(costs(5, 45), settings, resources(2, 1024), "gunicorn")
    assert (made.workers, made.threads) == (2, 20)


def test_where_memory_is_short_there_are_fewer_workers_with_more_threads() -> None:
    made = advice(costs(5, 45, own=100), memory_mb=200)
    assert (made.workers, made.threads) == (1, 20)
    assert not made.is_short


def test_where_memory_is_too_short_for_that_it_is_said() -> None:
    made = advice(costs(5, 45, own=100, thread=50), memory_mb=200)
    assert (made.workers, made.threads) == (1, 2)
    assert made.is_short


def test_worker_that_is_missing_is_replaced_by_threads_only_where_requests_wait() -> None:
    waiting = advice(costs(10, 6, own=100), cpus=2, memory_mb=200)
    assert (waiting.workers, waiting.threads) == (1, 7)
    computing = advice(costs(10, 0, own=100), cpus=2, memory_mb=200)
    assert (computing.workers, computing.threads) == (1, 1)
    assert computing.is_short


@pytest.mark.parametrize(("percent", "workers"), [("", 6), ("50", 4), ("0", 9)])
def test_headroom_is_left_alone(percent: str, workers: int) -> None:
    """Three tenths, if nothing else is said."""
    settings = load({"NOW_LMS_MEMORY_HEADROOM_PERCENT": percent})
    made = advise(costs(10, 0, own=100), settings, resources(8, 1000), "gunicorn")
    assert made.workers == workers


@given(
    cpu=st.floats(0, 1000),
    wait=st.floats(0, 10_000),
    cpus=st.sampled_from([0.1, 0.5, 1, 2, 4, 64]),
    memory_mb=st.integers(0, 8192),
    own=st.floats(0.1, 500),
    thread=st.floats(0, 100),
    server=st.sampled_from(["gunicorn", "waitress"]),
)
@untimed
def test_proposal_fits_or_is_one_worker_with_one_thread(
    *,
    cpu: float,
    wait: float,
    cpus: float,
    memory_mb: int,
    own: float,
    thread: float,
    server: ServerName,
) -> None:
    app = costs(cpu, wait, own, thread)
    made = advice(app, cpus, memory_mb, server)
    needed = app.shared_mb + made.workers * app.private_mb(made.threads)
    assert needed <= memory_mb or (made.workers, made.threads) == (1, 1)
    assert 1 <= made.workers <= math.floor(2 * cpus) + 1
    assert made.threads <= max(MOST_THREADS, math.floor(2 * cpus) + 1)
    if made.is_short:
        more = app.shared_mb + made.workers * app.private_mb(made.threads + 1)
        assert made.workers * made.threads < made.slots
        assert more > memory_mb or made.threads == MOST_THREADS or made.slots <= 1.25 * cpus
    if needed < memory_mb / 2 and made.threads > 1:
        enough = min(SPARE * made.slots, made.workers * MOST_THREADS)
        assert made.workers * made.threads >= math.floor(enough)
