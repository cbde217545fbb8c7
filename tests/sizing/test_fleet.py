"""How many instances a load needs, and what binds."""

from __future__ import annotations

from decimal import Decimal

import pytest

from flask_workersize.sizing.fleet import Fleet, Instance, Load, count_fleet, cpu_at_saturation
from flask_workersize.sizing.profile import AppCosts
from tests.plain import plan

THREE = plan(cpus=1)
"""A plan of three slots on one CPU."""


def count(cpu_ms: float | None, spare: int = 0) -> Fleet:
    cpu = None if cpu_ms is None else cpu_ms / 1000
    return count_fleet(Load(2000, 0.12, cpu, 0.05), Instance("a", THREE, Decimal("0.5")), spare)


def test_slots_bind_where_requests_wait_most_of_their_time() -> None:
    fleet = count(20)
    assert (fleet.replicas("leastconn"), fleet.binds("leastconn")) == (82, "slots")
    assert (fleet.replicas("random"), fleet.replicas("roundrobin")) == (222, 222)
    assert fleet.cost("leastconn") == 41


def test_cpu_binds_where_they_compute() -> None:
    """2,000 × 60 ms are 120 CPUs; 70 % of each are used, so 172 replicas."""
    fleet = count(60)
    assert (fleet.replicas("leastconn"), fleet.binds("leastconn")) == (172, "CPU")
    assert (fleet.replicas("random"), fleet.binds("random")) == (222, "slots")


def test_spare_replicas_come_on_top() -> None:
    fleet = count(None, spare=1)
    assert (fleet.replicas("leastconn"), fleet.replicas("random")) == (83, 223)


def test_cpu_at_saturation_is_what_the_slots_can_use() -> None:
    assert cpu_at_saturation(THREE, AppCosts(80, 17, 0, 5, 45)) == pytest.approx(0.3)
    assert cpu_at_saturation(THREE, AppCosts(80, 17, 0, 50, 0)) == 1
    alone = plan({"THREADS": "9"}, cpus=4, server="waitress")
    assert cpu_at_saturation(alone, AppCosts(80, 17, 0, 50, 0)) == 0.25
