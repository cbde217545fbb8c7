"""Erlang's formulas: against their definition, and against a simulation of the tests' own."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from fractions import Fraction
from statistics import mean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_workersize.sizing.queueing import (
    erlang_c,
    replicas_pooled,
    replicas_split,
    wait_seconds,
)

BATCHES, REQUESTS = 8, 15_000
"""How often it is simulated, and how many requests arrive each time; a tenth is to warm up."""


def simulated(replicas: int, slots: int, share: float, choose: Callable[..., int]) -> list[float]:
    """Return the wait that 95 % stay within in each batch; a request takes 1 s on average.

    :param share: share of the slots that is busy on average
    :param choose: which replica a request goes to: of its number, a random source and all replicas
    """
    found = []
    for batch in range(BATCHES):
        source = random.Random(batch)
        # For each slot, when it will be free.
        free = [[0.0] * slots for _ in range(replicas)]
        now, waits = 0.0, []
        for number in range(REQUESTS):
            now += source.expovariate(share * replicas * slots)
            queue = free[choose(number, source, replicas)]
            wait = max(0.0, queue[0] - now)
            heapq.heapreplace(queue, now + wait + source.expovariate(1))
            waits.append(wait)
        waits = sorted(waits[REQUESTS // 10 :])
        found.append(waits[int(len(waits) * 0.95)])
    return found


def at_random(_: int, source: random.Random, replicas: int) -> int:
    return source.randrange(replicas)


def by_turns(number: int, _: random.Random, replicas: int) -> int:
    return number % replicas


def error(found: list[float]) -> float:
    return 3 * stdev(found) / math.sqrt(len(found))


@pytest.mark.parametrize(("replicas", "slots", "share"), [(3, 3, 0.7), (4, 8, 0.85)])
def test_wait_is_that_of_a_simulation(replicas: int, slots: int, share: float) -> None:
    """Within 10 % and its error: one queue for all slots, and a queue for each replica."""
    pooled = simulated(1, replicas * slots, share, by_turns)
    formula = wait_seconds(replicas * slots, share * replicas * slots, 1)
    assert mean(pooled) == pytest.approx(formula, abs=0.1 * formula + error(pooled))
    split = simulated(replicas, slots, share, at_random)
    formula = wait_seconds(slots, share * slots, 1)
    assert mean(split) == pytest.approx(formula, abs=0.1 * formula + error(split))
    turns = simulated(replicas, slots, share, by_turns)
    assert mean(pooled) < mean(turns) < formula


@pytest.mark.parametrize(("slots", "load"), [(1, 0.5), (3, 2.0), (10, 8.0), (30, 29.5)])
def test_share_that_waits_is_that_of_the_definition(slots: int, load: float) -> None:
    """Sums of powers and factorials, exact with fractions."""
    a = Fraction(load)
    waiting = a**slots / math.factorial(slots) * slots / (slots - a)
    others = sum(a**number / math.factorial(number) for number in range(slots))
    assert erlang_c(slots, load) == pytest.approx(float(waiting / (waiting + others)), rel=1e-12)


def test_many_slots_are_calculated_as_exactly() -> None:
    """Factorials would have left the range of floats at 171 slots."""
    assert erlang_c(30_000, 24_000) < 1e-100
    assert 0.4 < erlang_c(30_000, 29_900) < 0.8
    assert (erlang_c(3, 0), erlang_c(3, 3), wait_seconds(3, 4, 1)) == (0, 1, math.inf)


def test_example_needs_82_replicas_behind_least_connections_and_222_behind_a_service() -> None:
    """2,000 requests a second of 120 ms, three slots each, 95 % wait at most 50 ms."""
    given = (3, 2000 * 0.120, 0.120, 0.050)
    assert (replicas_pooled(*given), replicas_split(*given)) == (82, 222)


@settings(deadline=None)
@given(
    slots=st.integers(1, 50),
    load=st.floats(0.001, 500),
    service=st.floats(0.001, 10),
    wait=st.floats(0, 10),
)
def test_one_replica_fewer_would_not_be_enough(
    slots: int, load: float, service: float, wait: float
) -> None:
    pooled = replicas_pooled(slots, load, service, wait)
    split = replicas_split(slots, load, service, wait)
    assert wait_seconds(pooled * slots, load, service) <= wait
    assert pooled == 1 or wait_seconds((pooled - 1) * slots, load, service) > wait
    assert wait_seconds(slots, load / split, service) <= wait
    assert split == 1 or wait_seconds(slots, load / (split - 1), service) > wait
    assert pooled <= split
