"""Follows a limit that changes while the app is served: the number of workers follows it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from ..log import say
from ..resources import Resources
from ..resources.processes import private_memory
from ..runtime.snapshot import Snapshot
from ..sizing.plan import MB, SizingPlan, available_for, compute_plan
from ..sizing.settings import SizingSettings
from .loop import Look, Task
from .scaling import Scaler

INTERVAL_SECONDS = 2.0
"""How often the limits are read: some hundred microseconds each time."""


class LimitFollower(Task):
    """Plans again when the limit on memory or on CPUs has changed.

    ``detect`` returns what the machine gives now, and what the launcher holds, in bytes. ``known``
    are the limit on memory, in bytes, and the CPUs that the plan was made with.
    """

    interval = INTERVAL_SECONDS

    def __init__(
        self,
        settings: SizingSettings,
        plan: SizingPlan,
        detect: Callable[[], tuple[Resources, int]],
        scaler: Scaler,
        known: tuple[int, float],
    ) -> None:
        self._settings = settings
        self._first = self._plan = plan
        self._detect = detect
        self._scaler = scaler
        self._known = known

    def run(self, now: float, look: Look) -> None:
        """Read the limits, and follow them."""
        resources, held = self._detect()
        limits = (resources.memory_limit, resources.cpus)
        if limits == self._known:
            return
        snapshot = look()
        # Before each worker was measured, what they hold would count as not available.
        if not snapshot.is_leaving and all(row.memory is not None for row in snapshot.ready):
            # As at a start: what the launcher has loaded is a part of what is taken off once.
            as_before = with_workers_memory(resources, snapshot)
            self._follow(limits, available_for(self._settings, as_before, held))

    def _follow(self, limits: tuple[int, float], resources: Resources) -> None:
        old = self._plan
        self._plan = plan = compute_plan(self._settings, resources, old.server)
        (memory_before, cpus_before), (memory, cpus) = self._known, limits
        self._known = limits
        changed = []
        if memory != memory_before:
            sizes = f"{memory_before // MB} MB to {memory // MB} MB"
            changed.append(f"memory limit changed from {sizes}")
        if cpus != cpus_before:
            changed.append(f"CPUs changed from {cpus_before:g} to {cpus:g}")
        reason = ", ".join(changed)
        if plan.workers != old.workers:
            self._scaler.set_target("limits", plan.workers - self._first.workers)
            workers = f"{plan.workers} worker{'' if plan.workers == 1 else 's'}"
            say(logging.INFO, f"{reason}: scaling from {old.workers} to {workers}.")
        elif plan.threads != old.threads:
            threads = f"{old.threads} to {plan.threads} threads"
            say(logging.WARNING, f"{reason}: restart to go from {threads}.")


def with_workers_memory(resources: Resources, snapshot: Snapshot) -> Resources:
    """Add back what the workers and this process hold: no plan at a start has counted it as used.

    Only what is private: what they share with the master stays used.
    """
    held = private_memory(os.getpid()) + sum(row.private_bytes for row in snapshot.workers)
    available = min(resources.memory_available + held, resources.memory_limit)
    return replace(resources, memory_available=available)
