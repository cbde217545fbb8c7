"""Measurements from traffic in the report, and the settings that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from ..runtime.deployment import Deployment
from ..runtime.snapshot import TrafficStats
from ..sizing.advice import advise
from ..sizing.plan import MB, SizingPlan, with_held
from ..sizing.profile import AppCosts
from ..sizing.settings import MEASURED

OFF_SHARE = 0.25
"""How far measured memory may be from what was planned, either way."""


LEARN_LINE = "NOW_LMS_SIZING_PROFILE=learn"
"""The setting that makes the next start plan with the measured values."""


class MeasuredReport(BaseModel):
    """Costs of the app, measured from traffic, and recommended settings."""

    model_config = ConfigDict(frozen=True)

    requests: int = Field(ge=1, description="requests that were measured")
    cpu_ms: float = Field(ge=0, description="CPU time per request, in milliseconds")
    wait_ms: float = Field(ge=0, description="time that a request waits, in milliseconds")
    shared_memory_mb: float = Field(ge=0, description="memory that all workers share, in MB")
    worker_memory_mb: float = Field(ge=0, description="highest private memory of a worker, in MB")
    advice: list[str] = Field(description="recommended settings for workers and threads")

    @classmethod
    def of(cls, traffic: TrafficStats, deployment: Deployment) -> Self:
        """Make the report of what the monitor of a deployment has measured."""
        costs = AppCosts(
            ceil(traffic.shared_bytes / MB),
            traffic.peak_bytes / MB,
            0.0,
            traffic.cpu_ns / 1e6,
            traffic.wait_ns / 1e6,
        )
        plan = deployment.plan
        available = with_held(deployment.resources, deployment.held_bytes, costs.shared_mb)
        lines = advise(costs, deployment.settings, available, plan.server).lines()
        if plan.sources["worker_memory_mb"] != MEASURED:
            # Without a profile the next plan would count 200 MB for each of these workers.
            lines.append(LEARN_LINE)
        return cls(
            requests=traffic.requests,
            cpu_ms=round(costs.cpu_ms, 3),
            wait_ms=round(costs.wait_ms, 3),
            shared_memory_mb=round(traffic.shared_bytes / MB, 1),
            worker_memory_mb=round(costs.peak_mb, 1),
            advice=lines,
        )

    def warnings(self, plan: SizingPlan) -> Iterable[str]:
        """Yield a warning if measured memory is far from what was planned."""
        once, own = ceil(self.shared_memory_mb), max(1, ceil(self.worker_memory_mb))
        measured = once + plan.workers * own
        off = measured / plan.estimated_memory_mb - 1
        if abs(off) <= OFF_SHARE:
            return
        source = plan.sources["worker_memory_mb"]
        remedy = f"set {LEARN_LINE} to plan the next start with the measured values"
        if source not in ("default", MEASURED):
            # It wins over a profile.
            remedy = f"{source} should be {-(-measured // plan.workers)}"
        total = f"{once} MB shared + {plan.workers} × {own} MB = {measured} MB"
        planned = f"planned {plan.estimated_memory_mb} MB ({off:+.0%})"
        yield f"measured {total}, {planned}: {remedy}."
