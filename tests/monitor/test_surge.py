"""What running requests have taken so far."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.monitor.surge import LEAST_SHARE, SURGE_SECONDS, Surges
from flask_workersize.runtime.snapshot import WorkerMemory, WorkerStats
from tests.health.snapshots import row

LIMIT = 1000
LEAST = int(LEAST_SHARE * LIMIT)


def worker(private: int, *running: float, age: int = 1) -> WorkerStats:
    return row(running, age=age, memory=WorkerMemory(private, None, private, 0))


def look(surges: Surges, now: float, *rows: WorkerStats) -> dict[int, int]:
    return dict(surges.look(now, rows, LIMIT))


def test_what_a_running_request_takes_shows_while_it_runs_and_grows() -> None:
    surges = Surges()
    assert look(surges, 0, worker(10)) == {}
    assert look(surges, 0.1, worker(90, 0.05)) == {1: 80}
    assert look(surges, 0.2, worker(110, 0.15)) == {1: 100}
    assert look(surges, 0.3, worker(110)) == {}
    assert look(surges, 0.4, worker(190, 0.05)) == {1: 80}


def test_what_was_there_when_it_began_is_not_its_own() -> None:
    """Nor what requests before it have kept."""
    surges = Surges()
    for number in range(200):
        assert look(surges, number, worker(number * 40, 0.5, 0.1)) == {}


def test_request_that_runs_for_long_takes_what_others_keep_meanwhile() -> None:
    surges = Surges()
    look(surges, 0, worker(10))
    assert look(surges, SURGE_SECONDS + 2, worker(500, SURGE_SECONDS + 1)) == {}


def test_worker_that_was_not_seen_before_its_request_says_nothing() -> None:
    surges = Surges()
    assert look(surges, 1, worker(500, 0.5), worker(10, age=2)) == {}
    assert look(surges, 1.1, worker(500, 0.6), worker(90, 0.05, age=2)) == {2: 80}


@given(st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 100), st.floats(0, 9)), max_size=60))
def test_surge_is_never_more_than_what_came_while_the_request_ran(
    steps: list[tuple[float, int, float]],
) -> None:
    """Give or take what came between its begin and the look before."""
    surges, now, private = Surges(), 0.0, 0
    past: list[tuple[float, int]] = []
    for pause, more, ran in steps:
        now, private = now + pause, private + more
        found = look(surges, now, worker(private, ran))
        before = [had for at, had in past if at < now - ran]
        past.append((now, private))
        if found:
            assert ran < SURGE_SECONDS
            assert LEAST <= found[1] <= private - before[-1]
