"""The bounds within which a size follows the load."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool, StaticPool

from flask_workersize import SizingSettings, compute_plan
from flask_workersize.cli.format import explain
from flask_workersize.runtime.deployment import Deployment
from flask_workersize.sizing.adaptive import AdaptiveBounds, adaptive_bounds, begins, pool_size
from flask_workersize.sizing.advice import MOST_THREADS
from tests.plain import resources
from tests.sizing.profiles import profile


def bounds(pool: int | None = None, cpus: float = 2, **asked: Any) -> AdaptiveBounds:
    asked = {"sizing": "adaptive", "wsgi_server": "gunicorn", **asked}
    settings = SizingSettings(**asked)
    made = adaptive_bounds(settings, compute_plan(settings, resources(cpus)), pool)
    assert made is not None
    return made


def test_size_of_the_guide_does_not_adapt() -> None:
    settings = SizingSettings(wsgi_server="gunicorn")
    plan = compute_plan(settings, resources())
    assert adaptive_bounds(settings, plan) is None
    assert begins(plan, None) == str(plan)


def test_workers_adapt_up_to_the_cpu_bound_and_threads_up_to_the_most() -> None:
    found = bounds()
    assert (found.workers, found.threads) == ((1, 5), (1, MOST_THREADS))
    assert found.reasons["workers"] == "CPU bound: 2 × 2 CPUs + 1"
    assert found.follows_cpus
    assert str(found) == "adapts: 1 to 5 workers × 1 to 64 threads"


def test_plan_shows_the_bounds_and_why() -> None:
    settings = SizingSettings(sizing="adaptive", wsgi_server="gunicorn")
    machine = resources(2)
    plan = compute_plan(settings, machine)
    lines = explain(settings, machine, plan, adaptive=bounds(pool=15)).splitlines()
    assert lines[0].endswith("; adapts: 1 to 5 workers × 1 to 15 threads")
    start = lines.index("adapts:")
    assert "1 to 5" in lines[start + 1]
    assert lines[start + 1].endswith("CPU bound: 2 × 2 CPUs + 1")
    assert lines[start + 2].endswith("the database pool of a worker has 15 connections")


def test_numbers_of_the_operator_stay() -> None:
    found = bounds(workers=3)
    assert (found.workers, found.threads) == ((3, 3), (1, MOST_THREADS))
    found = bounds(threads=4)
    assert (found.workers, found.threads) == ((1, 5), (4, 4))
    assert str(found) == "adapts: 1 to 5 workers × 4 threads"
    found = bounds(max_workers=2)
    assert (found.workers, found.reasons["workers"]) == ((1, 2), "argument 'max_workers'")
    assert not found.follows_cpus


def test_waitress_has_one_process_and_follows_with_threads() -> None:
    found = bounds(wsgi_server="waitress")
    assert (found.workers, found.threads) == ((1, 1), (1, MOST_THREADS))
    assert str(found) == "adapts: 1 to 64 threads"


@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
def test_database_pool_bounds_the_threads(server: str) -> None:
    found = bounds(pool=15, wsgi_server=server)
    assert found.threads == (1, 15)
    assert found.reasons["threads"] == "the database pool of a worker has 15 connections"
    assert bounds(pool=1000).threads == (1, MOST_THREADS)


def test_smallest_pool_that_ends_counts() -> None:
    def engine(**options: Any) -> Any:
        return create_engine("sqlite://", **options)

    queue = create_engine("sqlite:////tmp/none.db")
    assert pool_size([]) is None
    assert pool_size([queue]) == 15
    few = create_engine("sqlite:////tmp/none.db", pool_size=3, max_overflow=0)
    assert pool_size([queue, few]) == 3
    endless = create_engine("sqlite:////tmp/none.db", max_overflow=-1)
    assert pool_size([endless, engine(poolclass=NullPool), engine(poolclass=StaticPool)]) is None


@given(st.floats(0.1, 256), st.none() | st.integers(1, 50), st.none() | st.integers(1, 100))
def test_plan_is_within_the_bounds(cpus: float, workers: int | None, pool: int | None) -> None:
    found = bounds(pool, cpus, workers=workers)
    settings = SizingSettings(sizing="adaptive", wsgi_server="gunicorn", workers=workers)
    plan = compute_plan(settings, resources(cpus))
    assert found.workers.least <= plan.workers <= found.workers.most
    assert found.threads.least <= plan.threads <= found.threads.most


def test_next_start_begins_with_the_threads_that_were_found() -> None:
    """Within the bounds of now; the plan stays the guide's."""
    for found, first in [(12, 12), (500, MOST_THREADS), (1, None), (None, None)]:
        made = profile().model_copy(update={"found_threads": found})
        settings = SizingSettings(sizing="adaptive", wsgi_server="gunicorn").measured_by(made)
        plan = compute_plan(settings, resources())
        limits = adaptive_bounds(settings, plan)
        assert limits is not None
        assert (limits.first_threads, plan.threads) == (first, 1)
        deployment = Deployment(settings, resources(), plan, bounds=limits)
        assert deployment.make_scoreboard().threads == (first or 1)
        assert ("beginning with 12" in str(limits)) is (found == 12)
