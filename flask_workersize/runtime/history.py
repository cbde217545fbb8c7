"""What has happened in the last hour, in memory that all processes share; the monitor writes it.

Only counters are kept, as they were at the end of each minute. The figures of a minute are the
difference of two entries. So a restarted monitor counts nothing twice and misses nothing, and
minutes without a monitor are one longer stretch.
"""

from __future__ import annotations

import time
from array import array
from itertools import pairwise
from typing import NamedTuple

from .events import Event
from .layout import NANOSECONDS
from .queue_times import PERIOD_SECONDS, QueueTotals
from .snapshot import Snapshot

MOST_MINUTES = 60

SAMPLE_SECONDS = PERIOD_SECONDS
"""Time between two samples; the longest wait of the period before is known then."""

RATES_SECONDS = 8.0
"""Time that rates are an average of at least, once there is that much."""

_LEAST_SECONDS = 1.0
_STALE_SECONDS = 30.0
"""After so long without a sample there are no rates: no monitor runs."""


class Sample(NamedTuple):
    """What had been counted by a moment: the words of an entry, in this order.

    All but the last two are counters; times are nanoseconds.
    """

    at_ns: int = 0
    """The moment, by the monotonic clock."""

    slot_ns: int = 0
    """Slots × time."""

    occupied_ns: int = 0
    """Time that slots were busy, with requests that still run, too."""

    busy_ns: int = 0
    """Time that requests took which have ended."""

    cpu_ns: int = 0
    cpu_wait_ns: int = 0
    served: int = 0
    refused: int = 0
    """Requests that were turned away, and those whose client had gone."""

    shed: int = 0
    """The first of them."""

    queued: int = 0
    """Requests whose wait is known."""

    queue_ns: int = 0
    """How long they had waited, summed up."""

    waited: int = 0
    """Those whose wait is noticed."""

    crashed: int = 0
    oom_kills: int = 0
    recycled: int = 0
    queue_most_ns: int = 0
    """The longest wait in this minute."""

    used_bytes: int = 0
    """The most memory in this minute."""

    @classmethod
    def of(cls, now: Snapshot, queue: QueueTotals, at_ns: int) -> Sample:
        """Make a sample of a snapshot and queue times; ``slot_ns`` depends on the one before."""
        return cls(
            at_ns=at_ns,
            occupied_ns=now.occupied_ns,
            **{name: now.total(name) for name in ("busy_ns", "cpu_ns", "cpu_wait_ns", "served")},
            refused=queue.shed + queue.abandoned,
            shed=queue.shed,
            queued=queue.requests,
            queue_ns=queue.sum_ns,
            waited=queue.noticed,
            **{name: now.stored[name] for name in ("crashed", "oom_kills", "recycled")},
            used_bytes=now.stored["memory_used_bytes"],
        )

    def since(self, before: Sample) -> Sample:
        """Return what was counted since another one; no counter falls, but it may wrap."""
        counted = Sample(*(_more(now, then) for now, then in zip(self, before, strict=True)))
        return counted._replace(queue_most_ns=self.queue_most_ns, used_bytes=self.used_bytes)


_WRAP = 1 << 63
"""Where a word of 8 bytes ends: slots × time gets there, with 300 slots within a year."""


def _more(now: int, before: int) -> int:
    more = (now - before) % _WRAP
    return more if more < _WRAP // 2 else 0


class Stretch(NamedTuple):
    """A stretch of time: when it ended, in seconds since 1970, and what was counted in it."""

    at: float
    counted: Sample

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.counted.at_ns / NANOSECONDS

    @property
    def slots(self) -> float:
        """Requests that could run at once, on average."""
        return self.counted.slot_ns / self.counted.at_ns

    @property
    def busy(self) -> float:
        """Slots that were busy, on average."""
        return self.counted.occupied_ns / self.counted.at_ns

    @property
    def utilization(self) -> float:
        """Share of the time that slots were busy, 0 to 1; 0 where there was none."""
        return min(self.counted.occupied_ns / max(self.counted.slot_ns, 1), 1.0)

    @property
    def requests(self) -> int:
        """Requests that were served, turned away, or have begun at least."""
        return max(self.counted.served + self.counted.refused, self.counted.queued)

    @property
    def mean_seconds(self) -> float | None:
        """How long a request ran, on average; ``None`` if none has ended."""
        return _each(self.counted.busy_ns, self.counted.served)

    @property
    def cpu_seconds(self) -> float | None:
        """How much of that it computed."""
        return _each(self.counted.cpu_ns, self.counted.served)

    @property
    def queue_mean_seconds(self) -> float | None:
        """How long requests had waited, on average; ``None`` if unknown."""
        return _each(self.counted.queue_ns, self.counted.queued)

    @property
    def queue_most_seconds(self) -> float | None:
        """The longest of these waits."""
        return self.counted.queue_most_ns / NANOSECONDS if self.counted.queued else None


def _each(nanoseconds: int, count: int) -> float | None:
    return nanoseconds / count / NANOSECONDS if count else None


class Past(NamedTuple):
    """What has happened lately.

    ``minutes`` are those of the last hour, the oldest first, ``hour`` is all of it; ``None`` where
    no monitor runs. ``rates`` are the last ten seconds or so.
    """

    minutes: tuple[Stretch, ...] | None = None
    hour: Stretch | None = None
    rates: Stretch | None = None
    events: tuple[Event, ...] = ()


_ENTRY = 2 + len(Sample._fields)


class _Ring:
    """So many entries, each with a version, which is odd while it is written, and its number."""

    def __init__(self, cells: memoryview[int], count: int) -> None:
        self._cells = cells
        self._count = count

    def write(self, number: int, sample: Sample) -> None:
        place = number % self._count * _ENTRY
        self._cells[place] |= 1
        words = array("q", (number, *(word % _WRAP for word in sample)))
        self._cells[place + 1 : place + _ENTRY] = memoryview(words)
        self._cells[place] += 1

    def read(self) -> dict[int, Sample]:
        """Return the entries by number, the oldest first, but for one that is being written."""
        found = {}
        for place in range(0, self._count * _ENTRY, _ENTRY):
            version, number, *words = self._cells[place : place + _ENTRY].tolist()
            if version and version % 2 == 0 and version == self._cells[place]:
                found[number] = Sample(*words)
        return dict(sorted(found.items()))


_MINUTES = MOST_MINUTES + 2
"""What was before the first one, and one that is being replaced."""

_SAMPLES = 6
"""Samples that cover the time of the rates, some of them taken by a monitor that was restarted."""

WORDS = (_MINUTES + _SAMPLES) * _ENTRY
"""Words that the history takes."""


class LastHour:
    """The last hour and the last seconds, in :data:`WORDS` words that all processes share."""

    def __init__(self, cells: memoryview[int]) -> None:
        middle = _MINUTES * _ENTRY
        self._minutes = _Ring(cells[:middle], _MINUTES)
        self._samples = _Ring(cells[middle:], _SAMPLES)

    def note(self, sample: Sample, slots: int) -> None:
        """Enter a sample, some seconds after the last one; only the monitor does.

        :param slots: requests that could run at once since then
        """
        at = sample.at_ns / NANOSECONDS
        minute = int((at - SAMPLE_SECONDS / 2) // 60)
        number, last = next(reversed(self._samples.read().items()), (0, None))
        if last is None:
            # What was before the first minute.
            minute -= 1
        else:
            slot_ns = last.slot_ns + slots * (sample.at_ns - last.at_ns)
            sample = sample._replace(slot_ns=slot_ns)
        self._samples.write(number + 1, sample)
        before = self._minutes.read().get(minute, sample)
        self._minutes.write(
            minute,
            sample._replace(
                queue_most_ns=max(before.queue_most_ns, sample.queue_most_ns),
                used_bytes=max(before.used_bytes, sample.used_bytes),
            ),
        )

    def read(self, now: Sample) -> Past:
        """Return what has happened until now."""
        wall = time.time()

        def stretch(before: Sample, after: Sample) -> Stretch:
            return Stretch(wall - (now.at_ns - after.at_ns) / NANOSECONDS, after.since(before))

        entries = self._minutes.read()
        newest = max(entries, default=0)
        lately = [entry for number, entry in entries.items() if newest - number < _MINUTES]
        lately = lately[-(MOST_MINUTES + 1) :]
        if not lately:
            return Past()
        pairs = [pair for pair in pairwise(lately) if pair[0].at_ns < pair[1].at_ns]
        minutes = tuple(stretch(*pair) for pair in pairs)
        hour = stretch(lately[0], lately[-1]) if minutes else None
        start = self._start_of_rates(now)
        return Past(minutes, hour, stretch(start, now) if start else None)

    def _start_of_rates(self, now: Sample) -> Sample | None:
        """Return the sample since when rates are calculated: the newest that is old enough."""
        ages = [
            ((now.at_ns - sample.at_ns) / NANOSECONDS, sample)
            for sample in self._samples.read().values()
        ]
        known = [item for item in ages if _LEAST_SECONDS <= item[0] <= _STALE_SECONDS]
        enough = [item for item in known if item[0] >= RATES_SECONDS]
        return min(enough)[1] if enough else max(known)[1] if known else None
