"""How long requests have waited before the app began, counted in memory that all processes share.

A table beside the scoreboard, with a few words for each slot, which only the thread of that slot
writes. They are never reset: the next owner of the slot continues from there, so totals never
decrease and nothing has to be saved when a worker ends.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

BOUNDS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The upper bounds of the histogram; a last part has what waited longer."""

NOTICED_SECONDS = 0.1
"""The longest wait that goes unnoticed."""

_FIRST_NOTICED = BOUNDS_SECONDS.index(NOTICED_SECONDS) + 1

PERIOD_SECONDS = 5
"""For so long a slot remembers its longest wait, and then for once more while the next begins."""

_NANOSECONDS = 1_000_000_000
_PERIOD_NANOSECONDS = PERIOD_SECONDS * _NANOSECONDS
_PARTS = len(BOUNDS_SECONDS) + 1


class _Word:
    SUM = _PARTS
    SHED = _PARTS + 1
    ABANDONED = _PARTS + 2
    PERIOD = _PARTS + 3
    MOST = _PARTS + 4
    WORDS = _PARTS + 6


WORDS = _Word.WORDS
"""Words that each slot takes."""

_SUM, _PERIOD, _MOST = _Word.SUM, _Word.PERIOD, _Word.MOST


class QueueTotals(NamedTuple):
    """What was counted since the start.

    ``parts`` are those of the histogram, ``sum_ns`` is the sum of all waits, in nanoseconds; the
    others are requests that were not computed.
    """

    parts: tuple[int, ...]
    sum_ns: int
    shed: int
    abandoned: int

    @property
    def requests(self) -> int:
        """Requests whose wait was known."""
        return sum(self.parts)

    @property
    def noticed(self) -> int:
        """Those that had waited for more than :data:`NOTICED_SECONDS`."""
        return sum(self.parts[_FIRST_NOTICED:])


class QueueRow(NamedTuple):
    """A worker's part of the table: the words of each of its slots begin at one of ``starts``."""

    cells: memoryview[int]
    starts: range


class QueueTimes:
    """The table, in words that all processes share: :data:`WORDS` for each slot."""

    def __init__(self, cells: memoryview[int]) -> None:
        self.cells = cells

    def row(self, number: int, slots: int) -> QueueRow:
        """Return the part of one of several workers with so many slots each."""
        first, step = number * slots * WORDS, WORDS
        return QueueRow(self.cells, range(first, first + slots * step, step))

    def totals(self) -> QueueTotals:
        """Return what was counted in all slots."""
        parts = tuple(self._sum(part) for part in range(_PARTS))
        return QueueTotals(parts, *map(self._sum, (_Word.SUM, _Word.SHED, _Word.ABANDONED)))

    def most_ns(self, period: int) -> int:
        """Return the longest wait in a period, in nanoseconds: this one, or the last."""
        columns = (_Word.PERIOD, _Word.MOST + period % 2)
        rows = zip(*(self.cells[column::WORDS].tolist() for column in columns), strict=True)
        return max((most for at, most in rows if at - period in (0, 1)), default=0)

    def _sum(self, word: int) -> int:
        return sum(self.cells[word::WORDS].tolist())


def note_wait(cells: memoryview[int], at: int, seconds: float, now_ns: int) -> None:
    """Count a request that has waited; ``at`` is where the words of its slot begin."""
    if not seconds:
        # It came within this millisecond, as most do.
        cells[at] += 1
        return
    nanoseconds = int(seconds * _NANOSECONDS)
    cells[at + bisect_left(BOUNDS_SECONDS, seconds)] += 1
    cells[at + _SUM] += nanoseconds
    period = now_ns // _PERIOD_NANOSECONDS
    most = at + _Word.MOST + period % 2
    last = cells[at + _Word.PERIOD]
    if last != period:
        cells[most] = 0
        if last != period - 1:
            cells[at + _Word.MOST + (period + 1) % 2] = 0
        cells[at + _Word.PERIOD] = period
    cells[most] = max(cells[most], nanoseconds)


def note_shed(cells: memoryview[int], at: int) -> None:
    """Count a request that had waited for longer than the bound."""
    cells[at + _Word.SHED] += 1


def note_abandoned(cells: memoryview[int], at: int) -> None:
    """Count a request whose client had gone."""
    cells[at + _Word.ABANDONED] += 1


class _Look(NamedTuple):
    period: int
    totals: QueueTotals
    most_ns: int


class LastMinute:
    """The mean and the longest wait of the last minute, from a look at each period's begin."""

    _PERIODS = 60 // PERIOD_SECONDS

    def __init__(self, times: QueueTimes) -> None:
        self._times = times
        self._looks = [_Look(0, times.totals(), 0)]

    def look(self, now: float) -> tuple[int, int] | None:
        """Return both in nanoseconds; ``None`` if no request was counted.

        ``now`` is the monotonic clock, in seconds.
        """
        period = int(now // PERIOD_SECONDS)
        totals = self._times.totals()
        self._looks.append(_Look(period, totals, self._times.most_ns(period - 1)))
        # The last one before the minute has the counts until then.
        while len(self._looks) > 1 and self._looks[1].period <= period - self._PERIODS:
            del self._looks[0]
        before, *minute = self._looks
        count = totals.requests - before.totals.requests
        if not count:
            return None
        most = max(self._times.most_ns(period), *(look.most_ns for look in minute))
        return (totals.sum_ns - before.totals.sum_ns) // count, most
