"""Follows a limit that changes while the app is served: the number of workers follows it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from ..log import say
from ..resources import Resources
from ..resources.processes import process_memory
from ..runtime.snapshot import Snapshot
from ..sizing.plan import MB, SizingPlan, available_for, compute_plan
from ..sizing.settings import SizingSettings
from .scaling import Scaler

INTERVAL_SECONDS = 2.0
"""How often the limits are read: some hundred microseconds each time."""


class LimitFollower:
    """Plans again when the limit on memory or on CPUs is another one.

    :param settings: what the operator asked for
    :param plan: the plan that the server was started with
    :param detect: returns what the machine gives now, and what the launcher holds, in bytes
    :param hand: changes the number of workers
    :param known: limit on memory, in bytes, and CPUs that the plan was made with; what is found
        first where left out
    """

    interval = INTERVAL_SECONDS

    def __init__(
        self,
        settings: SizingSettings,
        plan: SizingPlan,
        detect: Callable[[], tuple[Resources, int]],
        scaler: Scaler,
        known: tuple[int, float] | None = None,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._first = plan
        self._detect = detect
        self._scaler = scaler
        self._known = known
        self._due = 0.0

    def run(self, now: float, snapshot: Snapshot) -> None:
        """Look at the limits, if it is time, and follow them."""
        if now < self._due or snapshot.is_leaving:
            return
        self._due = now + INTERVAL_SECONDS
        resources, held = self._detect()
        limits = (resources.memory_limit, resources.cpus)
        before = self._known or limits
        if limits == before:
            self._known = limits
        elif all(row.memory is not None for row in snapshot.ready):
            # Before each was measured, what they hold would count as not available.
            self._known = limits
            # As at a start: what the launcher has loaded is a part of what is taken off once.
            as_before = with_workers_memory(resources, snapshot)
            self._follow(before, resources, available_for(self._settings, as_before, held))

    def end(self, snapshot: Snapshot) -> None:
        """Do nothing."""

    def _follow(
        self, before: tuple[int, float], resources: Resources, as_before: Resources
    ) -> None:
        plan = compute_plan(self._settings, as_before, self._plan.server)
        old, self._plan = self._plan, plan
        changed = []
        if resources.memory_limit != before[0]:
            changed.append(
                f"the memory limit is {resources.memory_limit // MB} MB (was {before[0] // MB} MB)"
            )
        if resources.cpus != before[1]:
            changed.append(f"there are {resources.cpus:g} CPUs (were {before[1]:g})")
        reason = " and ".join(changed)
        if plan.workers != old.workers:
            self._scaler.set_target("limits", plan.workers - self._first.workers)
            workers = f"{plan.workers} worker{'' if plan.workers == 1 else 's'}"
            say(logging.INFO, f"{reason}: {workers} instead of {old.workers}.")
        elif plan.threads != old.threads:
            say(
                logging.WARNING,
                f"{reason}: {plan.threads} threads would be right instead of {old.threads}; "
                "restart to have them.",
            )


def with_workers_memory(resources: Resources, snapshot: Snapshot) -> Resources:
    """Add back what the workers and this process hold: no plan at a start has counted it as used.

    Only what is their own: what they share with the master stays used.

    :param resources: what the machine gives now
    :param snapshot: the workers
    """
    me = process_memory(os.getpid())
    held = (me.uss_bytes or 0) if me else 0
    for row in snapshot.workers:
        if row.memory is not None:
            held += row.memory.uss_bytes or 0
    available = min(resources.memory_available + held, resources.memory_limit)
    return replace(resources, memory_available=available)
