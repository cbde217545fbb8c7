"""The last hour: what each minute brought, whoever watched, and for how long."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.monitor.history import HistoryTask
from flask_workersize.runtime.history import (
    MOST_MINUTES,
    SAMPLE_SECONDS,
    WORDS,
    LastHour,
    Past,
    Sample,
)
from flask_workersize.runtime.layout import NANOSECONDS
from flask_workersize.runtime.queue_times import note_shed, note_wait
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import State
from tests.plain import MB, untimed
from tests.runtime.test_scoreboard import begin, given_row, serve

BEGUN = 120_000.0
"""A full minute of the monotonic clock."""

LATE = 0.003
"""How late a sample comes, in seconds."""


class Site:
    """A deployment whose counters and clock the test sets; each sample may be another monitor's."""

    def __init__(self, slots: int = 4) -> None:
        self.cells = memoryview(bytearray(8 * WORDS)).cast("q")
        self.now, self.slots = BEGUN, slots
        self.counted = Sample()
        self.note()

    def note(self, most: float = 0.0, used_mb: int = 100) -> None:
        at = round((self.now + LATE) * NANOSECONDS)
        self.counted = self.counted._replace(
            at_ns=at, queue_most_ns=round(most * NANOSECONDS), used_bytes=used_mb * MB
        )
        LastHour(self.cells).note(self.counted, self.slots)

    def run(self, seconds: float, busy: float = 0.0, **each: int) -> None:
        """Let time pass, each second as busy and with as much counted, with a monitor."""
        for _ in range(int(seconds / SAMPLE_SECONDS)):
            self.pass_time(SAMPLE_SECONDS, busy, **each)
            self.note()

    def pass_time(self, seconds: float, busy: float = 0.0, **each: int) -> None:
        """Let time pass without one."""
        self.now += seconds
        more = {name: int(count * seconds) for name, count in each.items()}
        more["occupied_ns"] = round(busy * seconds * NANOSECONDS)
        counted = {name: getattr(self.counted, name) + count for name, count in more.items()}
        self.counted = self.counted._replace(**counted)

    def read(self, after: float = 0.0) -> Past:
        at = round((self.now + LATE + after) * NANOSECONDS)
        return LastHour(self.cells).read(self.counted._replace(at_ns=at))

    def fields(self, name: str) -> list[int]:
        return [getattr(minute.counted, name) for minute in self.read().minutes or ()]


def test_without_a_monitor_nothing_is_known() -> None:
    cells = memoryview(bytearray(8 * WORDS)).cast("q")
    assert LastHour(cells).read(Sample(at_ns=10**12)) == Past()


def test_counters_that_no_longer_fit_into_a_word_go_on() -> None:
    """Slots × time does not, after a year of 300 slots: the monitor must not end for it."""
    site = Site(slots=10_000_000)
    site.run(20 * 60, busy=5_000_000, served=3)
    minutes = site.read().minutes or ()
    assert [round(minute.slots) for minute in minutes] == [10_000_000] * 20
    assert [round(minute.utilization, 3) for minute in minutes] == [0.5] * 20


def test_right_after_the_start_there_is_no_minute_yet() -> None:
    site = Site()
    assert site.read() == Past(minutes=())


def test_each_minute_has_what_it_brought_and_the_last_one_is_under_way() -> None:
    site = Site()
    site.run(60, busy=2, served=10, waited=1, queued=10)
    site.run(60, busy=4, served=30, queued=30)
    site.run(15, busy=1, served=2, queued=2)
    first, second, third = site.read().minutes or ()
    assert [round(minute.seconds) for minute in (first, second, third)] == [60, 60, 15]
    assert [minute.requests for minute in (first, second, third)] == [600, 1800, 30]
    assert [minute.utilization for minute in (first, second, third)] == [0.5, 1, 0.25]
    assert [minute.slots for minute in (first, second, third)] == [4, 4, 4]
    assert (first.counted.waited, second.counted.waited) == (60, 0)
    # Each begins where the one before it ended, and the last one ends now.
    assert second.at - first.at == pytest.approx(60)
    assert third.at == pytest.approx(time.time(), abs=1)


@pytest.mark.parametrize("minutes", [59, 60, 61, 75, 200])
def test_no_more_than_an_hour_is_kept(minutes: int) -> None:
    site = Site()
    for number in range(minutes):
        site.run(60, served=number + 1)
    brought = [60 * (number + 1) for number in range(minutes)]
    assert site.fields("served") == brought[-MOST_MINUTES:]
    hour = site.read().hour
    assert hour is not None
    assert hour.counted.served == sum(brought[-MOST_MINUTES:])
    assert round(hour.seconds / 60) == min(minutes, MOST_MINUTES)


def test_longest_wait_and_most_memory_are_those_of_the_minute() -> None:
    site = Site()
    for most, used_mb in [(0.0, 100), (2.5, 300), (0.5, 200)]:
        site.pass_time(5, queued=1)
        site.note(most, used_mb)
    site.run(45, queued=1)
    site.run(10, queued=1)
    first, second = site.read().minutes or ()
    assert (first.queue_most_seconds, first.counted.used_bytes) == (2.5, 300 * MB)
    assert (second.queue_most_seconds, second.counted.used_bytes) == (0, 100 * MB)


def test_waits_are_unknown_if_nobody_can_tell() -> None:
    site = Site()
    site.run(60, served=5)
    site.run(30, served=5, queued=5, queue_ns=NANOSECONDS // 2)
    first, second = site.read().minutes or ()
    assert (first.queue_mean_seconds, first.queue_most_seconds) == (None, None)
    assert second.queue_mean_seconds == pytest.approx(0.1)


def test_minutes_without_a_monitor_are_one_longer_stretch_with_what_they_brought() -> None:
    """The load of a gap is its average, not that of a minute, and nothing is counted twice."""
    site = Site()
    site.run(60, busy=4, served=10)
    site.pass_time(200, busy=1, served=3)
    site.note()
    site.run(35, busy=2, served=10)
    minutes = site.read().minutes or ()
    assert sum(minute.requests for minute in minutes) == 600 + 600 + 350
    assert sum(minute.seconds for minute in minutes) == pytest.approx(295)
    gap = max(minutes, key=lambda minute: minute.seconds)
    assert gap.seconds >= 200
    assert gap.utilization == pytest.approx(0.25, abs=0.05)


def test_hour_without_a_monitor_is_not_shown_as_a_minute() -> None:
    site = Site()
    site.run(60, served=10)
    site.pass_time(4000, served=10)
    site.note()
    site.run(10, served=1)
    minutes = site.read().minutes or ()
    assert sum(minute.seconds for minute in minutes) < 3660


def test_more_slots_count_for_as_long_as_they_were_there() -> None:
    site = Site(slots=2)
    site.run(30, busy=2)
    site.slots = 6
    site.run(30, busy=2)
    (minute,) = site.read().minutes or ()
    assert minute.slots == pytest.approx(4)
    assert minute.utilization == pytest.approx(0.5)


def test_counter_that_falls_is_no_negative_number() -> None:
    site = Site()
    site.run(60, busy=1, served=10)
    site.counted = site.counted._replace(occupied_ns=0, served=0)
    site.run(60)
    assert site.fields("served") == [600, 0]
    assert site.fields("occupied_ns")[1] == 0


def test_monitor_that_was_killed_while_it_wrote_leaves_an_entry_that_heals() -> None:
    site = Site()
    site.run(75, served=10)
    whole = site.fields("served")
    versions = [
        place for place in range(0, WORDS, WORDS // (MOST_MINUTES + 8)) if site.cells[place]
    ]
    for place in versions:
        site.cells[place] += 1
    assert site.read() == Past()
    for place in versions[:-1]:
        site.cells[place] += 1
    site.run(5, served=10)
    assert sum(site.fields("served")) == sum(whole) + 50


@untimed
@given(
    st.lists(
        st.tuples(st.sampled_from([5, 5, 5, 10, 60, 130]), st.integers(0, 50), st.booleans()),
        min_size=1,
        max_size=80,
    )
)
def test_minutes_add_up_to_what_was_counted_whoever_watches(
    parts: list[tuple[int, int, bool]],
) -> None:
    site = Site()
    total, began = 0, site.now
    for seconds, each, has_monitor in parts:
        if site.now - began > 3000:
            break
        before = site.counted.served
        (site.run if has_monitor else site.pass_time)(seconds, served=each)
        total += site.counted.served - before
    site.now += 1
    site.note()
    past = site.read()
    assert past.minutes is not None
    assert past.hour is not None
    assert sum(minute.requests for minute in past.minutes) == total == past.hour.requests
    assert sum(minute.seconds for minute in past.minutes) == pytest.approx(site.now - began)
    assert all(0 <= minute.utilization <= 1 for minute in past.minutes)
    ends = [minute.at for minute in past.minutes]
    assert ends == sorted(ends)


# Rates


@pytest.mark.parametrize(("after", "seconds"), [(0.5, None), (1.5, 1.5), (4.0, 4.0)])
def test_rates_begin_a_second_after_the_start(after: float, seconds: float | None) -> None:
    rates = Site().read(after).rates
    assert (rates and pytest.approx(rates.seconds)) == seconds


@pytest.mark.parametrize(("after", "seconds"), [(0, 10), (2.9, 12.9), (3.1, 8.1), (4.9, 9.9)])
def test_rates_are_those_of_the_last_ten_seconds(after: float, seconds: float) -> None:
    site = Site()
    site.run(30, busy=4, served=100, busy_ns=NANOSECONDS, cpu_ns=NANOSECONDS // 10)
    site.run(10, busy=2, served=20, busy_ns=2 * NANOSECONDS, cpu_ns=NANOSECONDS)
    rates = site.read(after).rates
    assert rates is not None
    assert rates.seconds == pytest.approx(seconds)
    assert rates.busy <= 2.5
    if seconds == 10:
        assert rates.counted.served == 200
        assert rates.busy == pytest.approx(2)
        assert rates.mean_seconds == pytest.approx(0.1)
        assert rates.cpu_seconds == pytest.approx(0.05)


def test_rates_are_known_right_after_a_monitor_was_started_again() -> None:
    site = Site()
    site.run(5, served=10)
    site.pass_time(2, served=10)
    site.note()
    rates = site.read().rates
    assert rates is not None
    assert rates.seconds == pytest.approx(7)
    assert rates.counted.served == 70


def test_without_requests_a_request_takes_no_time_that_is_known() -> None:
    site = Site()
    site.run(20)
    rates = site.read().rates
    assert rates is not None
    assert (rates.mean_seconds, rates.cpu_seconds, rates.busy) == (None, None, 0)


def test_rates_of_a_monitor_that_is_gone_are_not_shown() -> None:
    site = Site()
    site.run(20, served=10)
    assert site.read(after=25).rates is not None
    assert site.read(after=31).rates is None
    assert site.read(after=31).minutes


# What is counted


def task(board: Scoreboard, *seconds: float) -> None:
    for second in seconds:
        HistoryTask(board).run(BEGUN + second, board.read)


def test_monitor_counts_what_the_workers_have_served_and_what_has_waited() -> None:
    board = Scoreboard(2, 2)
    board.state = State.SERVING
    task(board, 0)
    row = given_row(board)
    row.set_ready()
    serve(row, times=7)
    for waited in (0.01, 0.1, 0.2, 3.0):
        note_wait(board.queue_times.cells, 0, waited, round(BEGUN * NANOSECONDS))
    note_shed(board.queue_times.cells, 0)
    board.note_usage(500 * MB, 321 * MB)
    task(board, 5)
    (minute,) = board.last_hour.read(Sample(at_ns=round((BEGUN + 5) * NANOSECONDS))).minutes or ()
    assert (minute.requests, minute.counted.shed) == (8, 1)
    assert (minute.counted.queued, minute.counted.waited) == (4, 2)
    assert minute.queue_most_seconds == pytest.approx(3)
    assert minute.slots == 2
    assert minute.counted.used_bytes == 321 * MB


def test_request_that_still_runs_makes_its_slot_busy() -> None:
    board = Scoreboard(1, 1)
    row = given_row(board)
    slot = begin(row)
    row.cells[slot] -= 40 * NANOSECONDS
    assert board.read().occupied_ns == pytest.approx(40 * NANOSECONDS, rel=0.01)


def test_worker_that_is_killed_takes_no_time_with_it() -> None:
    """Else the minute in which a stuck worker is killed would look idle."""
    board = Scoreboard(1, 1)
    row = given_row(board)
    serve(row)
    slot = begin(row)
    row.cells[slot] -= 120 * NANOSECONDS
    before = board.read().occupied_ns
    board.release(1)
    after = board.read().occupied_ns
    assert 0 <= after - before < NANOSECONDS


def test_reload_and_new_workers_go_on_in_the_same_hour() -> None:
    board = Scoreboard(1, 1)
    task(board, 0)
    for age, second in ((1, 5), (2, 10), (3, 15)):
        row = given_row(board, age)
        serve(row, times=3)
        task(board, second)
        row.leave()
        board.release(age)
    task(board, 20)
    (minute,) = board.last_hour.read(Sample(at_ns=round((BEGUN + 20) * NANOSECONDS))).minutes or ()
    assert minute.requests == 9
