"""Follows a limit that changes while the app is served: the number of workers follows it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from ..resources import Resources
from ..resources.processes import private_memory
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot
from ..sizing.plan import MB, SizingPlan, available_for, compute_plan
from ..sizing.settings import SizingSettings
from .loop import Look, Task
from .scaling import Scaler

INTERVAL_SECONDS = 2.0
"""How often the limits are read: some hundred microseconds each time."""

SETTLE_SECONDS = 10.0
"""How long after a change more workers are planned, if more memory becomes available: memory
that is held only for a moment must not count for good."""


class LimitFollower(Task):
    """Plans again when the limit on memory or on CPUs has changed.

    ``detect`` returns the resources of now, and what the launcher holds, in bytes. The last
    limits are in the scoreboard: a restarted monitor follows nothing twice.
    """

    interval = INTERVAL_SECONDS

    def __init__(
        self,
        board: Scoreboard,
        settings: SizingSettings,
        plan: SizingPlan,
        detect: Callable[[], tuple[Resources, int]],
        scaler: Scaler,
    ) -> None:
        self._board = board
        self._settings = settings
        self._first = plan
        self._detect = detect
        self._scaler = scaler

    def run(self, now: float, look: Look) -> None:
        """Read the limits, and follow them."""
        resources, held = self._detect()
        has_changed = limits_of(resources) != self._known
        if has_changed:
            self._board.settles_at = now + SETTLE_SECONDS
        elif now >= self._board.settles_at:
            return
        snapshot = look()
        # Until each worker is measured, its memory would count as not available.
        if not snapshot.is_leaving and all(row.memory is not None for row in snapshot.ready):
            # As at a start: the launcher's memory is part of what is subtracted once.
            as_before = with_workers_memory(resources, snapshot)
            as_planned = available_for(self._settings, as_before, held)
            plan = compute_plan(self._settings, as_planned, self._first.server)
            more = plan.workers > self._first.workers + self._board.for_limits
            if has_changed or more:
                self._follow(plan, resources)

    @property
    def _known(self) -> tuple[int, int]:
        return self._board.followed_memory, self._board.followed_cpus

    def _follow(self, plan: SizingPlan, resources: Resources) -> None:
        # The threads that run are those of the start.
        old_workers, old_threads = self._first.workers + self._board.for_limits, self._first.threads
        self._board.available_mb = plan.memory_available_mb
        memory_before, cpus_before = self._known
        memory, cpus = limits_of(resources)
        self._board.followed_memory, self._board.followed_cpus = memory, cpus
        changed = []
        if memory != memory_before:
            sizes = f"{memory_before // MB} MB to {memory // MB} MB"
            changed.append(f"memory limit changed from {sizes}")
        if cpus != cpus_before:
            changed.append(f"CPUs changed from {cpus_before / 1000:g} to {cpus / 1000:g}")
        reason = ", ".join(changed) or "more memory is available"
        if plan.workers != old_workers:
            # Do not subtract workers twice, for the guard and for the limit.
            there = min(self._board.wanted, plan.workers)
            self._board.for_limits = plan.workers - self._first.workers
            # The size that the load needed was for the limit before.
            self._board.for_load = 0
            self._board.removed = min(self._board.removed, plan.workers - there)
            self._scaler.scale()
            workers = f"{plan.workers} worker{'' if plan.workers == 1 else 's'}"
            self._board.events.tell(
                logging.INFO, f"{reason}: scaling from {old_workers} to {workers}."
            )
        elif plan.threads != old_threads:
            threads = f"{old_threads} to {plan.threads} threads"
            self._board.events.tell(logging.WARNING, f"{reason}: restart to go from {threads}.")


def limits_of(resources: Resources) -> tuple[int, int]:
    """Return the limit on memory, in bytes, and the CPUs, in thousandths."""
    return resources.memory_limit, round(resources.cpus * 1000)


def with_workers_memory(resources: Resources, snapshot: Snapshot) -> Resources:
    """Add back the memory of the workers and this process: at a start no plan counts it as used.

    Only what is private: what they share with the master stays used.
    """
    held = private_memory(os.getpid()) + sum(row.private_bytes for row in snapshot.workers)
    available = min(resources.memory_available + held, resources.memory_limit)
    return replace(resources, memory_available=available)
