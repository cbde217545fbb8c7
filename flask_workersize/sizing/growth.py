"""Tell a leak from noise; pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEAST_GROWTH_MB = 0.25
"""Growth during the measuring that is more than noise: some pages come and go."""

SURE = 3.0
"""How many times its own error a slope has to be, to be one."""


class Slope(NamedTuple):
    """How something grows with each request."""

    each: float = 0.0
    error: float = 0.0
    is_sure: bool = False


def slope(points: Sequence[tuple[int, float]]) -> Slope:
    """Return how something grows with each request.

    A straight line through the later two thirds, when caches are full (least squares).

    :param points: requests so far, and how much there was then
    """
    later = points[len(points) // 3 :]
    if len(later) < 4 or later[0][0] == later[-1][0]:
        return Slope()
    xs, ys = zip(*later, strict=True)
    line = statistics.linear_regression(xs, ys)
    errors = [y - line.slope * x - line.intercept for x, y in later]
    width = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
    error = (sum(item**2 for item in errors) / (len(later) - 2) / width) ** 0.5
    grown = line.slope * (xs[-1] - xs[0])
    is_sure = grown >= LEAST_GROWTH_MB and line.slope > SURE * error
    return Slope(line.slope, error, is_sure)
