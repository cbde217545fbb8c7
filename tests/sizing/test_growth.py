"""A leak is told from noise."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.sizing.growth import Slope, slope
from tests.plain import untimed


@given(seed=st.integers(0, 10_000), leak=st.floats(0.01, 1))
@untimed
def test_leak_is_found_and_its_size(seed: int, leak: float) -> None:
    noise = random.Random(seed)
    points = [(20 * n, 30 + 20 * n * leak + noise.uniform(-0.05, 0.05)) for n in range(12)]
    found = slope(points)
    assert found.is_sure
    assert found.each == pytest.approx(leak, rel=0.1)
    assert 0 < found.error < 0.01


@given(seed=st.integers(0, 10_000))
@untimed
def test_pages_that_come_and_go_are_no_leak(seed: int) -> None:
    noise = random.Random(seed)
    points = [(20 * n, 30 + noise.uniform(-0.1, 0.1)) for n in range(12)]
    assert not slope(points).is_sure


def test_cache_that_fills_at_first_is_no_leak() -> None:
    points = [(20 * n, 30 + min(n, 3) * 10.0) for n in range(12)]
    assert slope(points) == Slope()


@pytest.mark.parametrize(
    "points", [[], [(1, 1.0)], [(n, 1.0 * n) for n in range(4)], [(5, 1.0)] * 9]
)
def test_too_little_says_nothing(points: list[tuple[int, float]]) -> None:
    assert slope(points) == Slope()
