"""How many instances of which size a load needs; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from .plan import SizingPlan
from .profile import AppCosts
from .queueing import replicas_pooled, replicas_split

CPU_SHARE = 0.7
"""Share of its CPUs that a fleet may use: above it requests wait for a CPU instead of a slot, which
the formulas of :mod:`flask_workersize.sizing.queueing` do not see."""

Balancer = Literal["leastconn", "random", "roundrobin"]


@dataclass(frozen=True)
class Load:
    """What a fleet has to serve.

    :param rps: requests a second, above 0
    :param service_seconds: mean time of a request, in seconds, without waiting for a slot
    :param cpu_seconds: CPU time of a request, in seconds; ``None`` if it was not measured
    :param wait_seconds: wait for a slot that 95 % of the requests have to stay within, in seconds
    """

    rps: float
    service_seconds: float
    cpu_seconds: float | None
    wait_seconds: float

    @property
    def busy(self) -> float:
        """Requests that run at once, on average (Little's law)."""
        return self.rps * self.service_seconds


@dataclass(frozen=True)
class Instance:
    """A size that a replica can have.

    :param label: what the operator calls it
    :param plan: the plan that it has
    :param price: what one costs, in whatever the operator counts in; ``None`` if not given
    """

    label: str
    plan: SizingPlan
    price: Decimal | None = None


@dataclass(frozen=True)
class Fleet:
    """How many instances a load needs.

    :param instance: of which size
    :param pooled: replicas for the slots, with least connections
    :param split: replicas for the slots, with a random choice
    :param for_cpu: replicas for the CPU time; 0 if that is not known
    :param spare: replicas more than are needed
    """

    instance: Instance
    pooled: int
    split: int
    for_cpu: int
    spare: int

    def replicas(self, balancer: Balancer) -> int:
        """Return how many replicas there should be."""
        return max(self._for_slots(balancer), self.for_cpu) + self.spare

    def binds(self, balancer: Balancer) -> str:
        """Return what sets the number: "slots" or "CPU"."""
        return "CPU" if self.for_cpu > self._for_slots(balancer) else "slots"

    def cost(self, balancer: Balancer) -> Decimal | None:
        """Return the price of all replicas; ``None`` if there is none."""
        price = self.instance.price
        return None if price is None else price * self.replicas(balancer)

    def _for_slots(self, balancer: Balancer) -> int:
        return self.pooled if balancer == "leastconn" else self.split


def count_fleet(load: Load, instance: Instance, spare: int) -> Fleet:
    """Return how many instances of a size a load needs."""
    slots = instance.plan.concurrency
    given = (slots, load.busy, load.service_seconds, load.wait_seconds)
    for_cpu = 0
    if load.cpu_seconds is not None:
        cpus = usable_cpus(instance.plan) * CPU_SHARE
        for_cpu = math.ceil(round(load.rps * load.cpu_seconds / cpus, 6))
    return Fleet(instance, replicas_pooled(*given), replicas_split(*given), for_cpu, spare)


def usable_cpus(plan: SizingPlan) -> float:
    """Return the CPUs that a plan can use: Python computes on one at a time in each worker."""
    return min(plan.cpus, plan.workers)


def cpu_at_saturation(plan: SizingPlan, costs: AppCosts, slots: int | None = None) -> float:
    """Return the share of its CPUs that an instance uses when all slots are busy, 0 to 1.

    ``slots × computing / (computing + waiting)`` CPUs, as far as it has them. An autoscaler whose
    target is above that share never acts.

    :param slots: most requests at once, if those are not the plan's
    """
    whole = costs.cpu_ms + costs.wait_ms
    computing = costs.cpu_ms / whole if whole else 1.0
    return min((slots or plan.concurrency) * computing, usable_cpus(plan)) / plan.cpus
