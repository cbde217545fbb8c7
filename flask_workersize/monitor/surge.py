"""Memory that running requests have taken so far: a large request shows before it ends.

Without it, what a request takes for a while would count only when it has given that back, and all
workers could have begun such a request by then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from ..runtime.snapshot import WorkerStats

SURGE_SECONDS = 5.0
"""How long a request may have run: during a longer one what others keep would count as its own."""

LEAST_SHARE = 0.05
"""Share of the limit that it has to have taken: what a leak takes between two looks is less."""

MOST_LOOKS = 128
"""Looks at a worker that are remembered, if there are so many within that time."""


class Surges:
    """Remembers the workers' memory, to measure growth since their running request began."""

    def __init__(self) -> None:
        self._seen: dict[int, deque[tuple[float, int]]] = {}

    def look(self, now: float, rows: Iterable[WorkerStats], limit_bytes: int) -> Mapping[int, int]:
        """Return what the running request of each worker has taken, in bytes, by the worker's age.

        It is what the worker has more than when it was last seen before that request began; the
        request that has run longest counts. Workers of which that is not much are left out.

        :param now: seconds of a monotonic clock, the time of this look
        :param rows: the workers, with what they have now
        :param limit_bytes: the limit on memory
        """
        found, seen = {}, self._seen
        self._seen = {}
        for row in rows:
            past = self._seen[row.age] = seen.get(row.age) or deque(maxlen=MOST_LOOKS)
            ran = max(row.running_seconds, default=0.0)
            before = [had for at, had in past if at < now - ran]
            if 0 < ran < SURGE_SECONDS and before:
                took = row.private_bytes - before[-1]
                if took >= LEAST_SHARE * limit_bytes:
                    found[row.age] = took
            past.append((now, row.private_bytes))
            while len(past) > 1 and past[1][0] < now - SURGE_SECONDS:
                past.popleft()
        return found
