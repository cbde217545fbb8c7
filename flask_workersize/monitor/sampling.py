"""What the workers hold: measured one after the other, and entered in the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from ..resources.processes import (
    ResidentPeak,
    peak_resident_memory,
    process_memory,
    resident_memory,
)
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import Snapshot, WorkerMemory, WorkerStats
from . import guard
from .loop import Look, Task

OFTEN_SECONDS = 0.05
"""How often memory is read near the limit: a leak of 0.5 MB a request grows by some MB then."""

EXPECTING_SECONDS = 0.02
"""How often while a worker is about to be ready, or warm: measure it before it grows."""

WARMING_SECONDS = 0.5
"""How long after a request a worker counts as about to be warm."""

SELDOM_SECONDS = 0.5
"""How often while there is enough memory, or if the machine is the limit."""

TURN_SECONDS = 2.0
"""How often a worker is measured again that has served nothing since, one after the other."""

SAMPLE_SHARE = 0.005
"""Share of a CPU that sampling those that have served may take, reading the table included."""


class SamplingTask(Task):
    """Measures workers, and enters that in the ledger: the one place where samples come from."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._sampled_at = float("-inf")
        self._pause = 0.0
        self._cold: dict[int, int] = {}
        self._warming_at = float("-inf")
        self.interval = SELDOM_SECONDS

    def run(self, now: float, look: Look) -> None:
        """Measure the worker that needs it most, if one does."""
        begun = time.thread_time()
        snapshot = look()
        for row in self._due(now, sorted(snapshot.ready, key=_sample_age, reverse=True)):
            # Of one that has just ended there is nothing.
            if found := self.measure([row]):
                self._sampled_at, snapshot = now, known(snapshot, found)
                cost = time.thread_time() - begun
                self._pause = min(max(cost / SAMPLE_SHARE, OFTEN_SECONDS), TURN_SECONDS)
                break
        self.interval = self._interval(now, snapshot)

    def _due(self, now: float, ready: list[WorkerStats]) -> list[WorkerStats]:
        # A worker that is new or has just got warm is measured at once: what comes then is growth.
        if new := [row for row in ready if _is_new(row)]:
            return new
        waited = now - self._sampled_at
        if waited >= TURN_SECONDS:
            return ready
        return [row for row in ready if _has_served(row)] if waited >= self._pause else []

    def _interval(self, now: float, snapshot: Snapshot) -> float:
        if snapshot.is_leaving:
            return SELDOM_SECONDS
        cold = {row.age: row.served for row in snapshot.ready if _is_cold(row)}
        if any(served > self._cold.get(age, 0) for age, served in cold.items()):
            self._warming_at = now
        self._cold = cold
        is_warming = bool(cold) and now < self._warming_at + WARMING_SECONDS
        if is_warming or len(snapshot.ready) < snapshot.wanted:
            return EXPECTING_SECONDS
        if any(_is_new(row) or _has_served(row) for row in snapshot.ready):
            return min(max(self._pause, OFTEN_SECONDS), SELDOM_SECONDS)
        return SELDOM_SECONDS

    def measure(self, rows: Iterable[WorkerStats]) -> dict[int, WorkerMemory]:
        """Sample workers in full, and return what is known of each age: some milliseconds each."""
        found = {}
        for row in rows:
            memory = process_memory(row.pid)
            if memory is not None and memory.rss_bytes:
                peak = peak_resident_memory(row.pid)
                is_warm = row.served >= guard.WARM_REQUESTS
                found[row.age] = self._board.note_memory(
                    row.number, memory, peak, row.served, is_warm
                )
        return found

    def estimate_peaks(self, rows: Iterable[WorkerStats]) -> dict[int, WorkerMemory]:
        """Read resident memory and its peak, some ten microseconds each."""
        found = {}
        for row in rows:
            peak = peak_resident_memory(row.pid) if row.memory else ResidentPeak()
            if peak.rss_bytes:
                found[row.age] = self._board.note_resident(row.number, peak.rss_bytes, peak)
        return found

    def estimate(self, rows: Iterable[WorkerStats]) -> dict[int, WorkerMemory]:
        """Read resident memory alone, some microseconds each.

        What a worker shares becomes less with time: it has at least as much of its own.
        """
        return {
            row.age: self._board.note_resident(row.number, resident)
            for row in rows
            if row.memory and (resident := resident_memory(row.pid))
        }


def known(snapshot: Snapshot, found: dict[int, WorkerMemory]) -> Snapshot:
    """Return the table with what is known of each age now."""
    rows = (row._replace(memory=found.get(row.age, row.memory)) for row in snapshot.workers)
    return replace(snapshot, workers=tuple(rows))


def _sample_age(row: WorkerStats) -> float:
    return row.memory.age_seconds if row.memory else float("inf")


def _is_cold(row: WorkerStats) -> bool:
    return row.memory is None or row.memory.warm_bytes is None


def _is_new(row: WorkerStats) -> bool:
    return row.memory is None or (_is_cold(row) and row.served >= guard.WARM_REQUESTS)


def _has_served(row: WorkerStats) -> bool:
    return row.memory is not None and row.served != row.memory.served
