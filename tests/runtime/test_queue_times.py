"""The table of queue times: what is counted, and the last minute of it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.runtime.queue_times import (
    BOUNDS_SECONDS,
    PERIOD_SECONDS,
    WORDS,
    LastMinute,
    QueueTimes,
    note_abandoned,
    note_shed,
    note_wait,
)

SECOND = 1_000_000_000


def table(slots: int) -> QueueTimes:
    return QueueTimes(memoryview(bytearray(slots * WORDS * 8)).cast("q"))


waits = st.floats(0, 100).map(lambda seconds: round(seconds, 3))


@given(st.lists(st.tuples(st.integers(0, 5), waits)))
def test_every_wait_is_counted_once_in_its_part(asked: list[tuple[int, float]]) -> None:
    times = table(6)
    starts = [start for number in range(3) for start in times.row(number, 2).starts]
    for slot, seconds in asked:
        note_wait(times.cells, starts[slot], seconds, SECOND)
    totals = times.totals()
    bounds = [0.0, *BOUNDS_SECONDS, float("inf")]
    for part, (low, high) in enumerate(pairwise(bounds)):
        fitting = [s for _, s in asked if (low < s <= high) or (s == 0 and part == 0)]
        assert totals.parts[part] == len(fitting)
    assert totals.requests == len(asked)
    assert totals.sum_ns == sum(int(seconds * SECOND) for _, seconds in asked)
    assert (totals.shed, totals.abandoned) == (0, 0)


def test_what_was_not_computed_is_counted_in_every_slot() -> None:
    times = table(4)
    for start in (*times.row(0, 2).starts, *times.row(1, 2).starts):
        note_shed(times.cells, start)
    note_abandoned(times.cells, times.row(1, 2).starts[0])
    assert (times.totals().shed, times.totals().abandoned) == (4, 1)


def test_slots_do_not_overlap() -> None:
    times = table(6)
    rows = [times.row(number, 2) for number in range(3)]
    starts = [start for row in rows for start in row.starts]
    assert len(set(starts)) == 6
    assert len(times.cells) % 6 == 0
    assert max(starts) + len(times.cells) // 6 == len(times.cells)


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.floats(0, 9).map(lambda s: round(s, 2)), waits),
        min_size=1,
        max_size=40,
    )
)
def test_last_minute_is_that_of_a_list(asked: list[tuple[int, float, float]]) -> None:
    """The monitor looks at the beginning of each period; a model keeps every request."""
    times = table(2)
    starts = times.row(0, 2).starts
    last_minute = LastMinute(times)
    now, seen, told = 1000.0, [], None
    looked_at = now // PERIOD_SECONDS
    for slot, gap, seconds in asked:
        now += gap
        while looked_at < now // PERIOD_SECONDS:
            looked_at += 1
            told = last_minute.look(looked_at * PERIOD_SECONDS)
        note_wait(times.cells, starts[slot], seconds, int(now * SECOND))
        seen.append((now // PERIOD_SECONDS, int(seconds * SECOND)))
    looked_at = now // PERIOD_SECONDS + 1
    told = last_minute.look(looked_at * PERIOD_SECONDS)
    # At least a minute, at most one period more.
    recent = [ns for period, ns in seen if period >= looked_at - 60 // PERIOD_SECONDS]
    older = [ns for period, ns in seen if period >= looked_at - 60 // PERIOD_SECONDS - 1]
    assert told is not None
    mean, most = told
    assert max(recent) <= most <= max(older)
    assert mean <= most


def test_minute_without_a_request_has_no_waits() -> None:
    times = table(1)
    last_minute = LastMinute(times)
    assert last_minute.look(1000) is None
    note_wait(times.cells, 0, 0.5, 1001 * SECOND)
    assert last_minute.look(1005) == (SECOND // 2, SECOND // 2)
    for second in range(1010, 1065, PERIOD_SECONDS):
        assert last_minute.look(second) == (SECOND // 2, SECOND // 2)
    assert last_minute.look(1065) is None
