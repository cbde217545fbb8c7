"""Requests that wait too long are one line a minute, and are written down for the report."""

from __future__ import annotations

import pytest

from flask_workersize.monitor.overload import LONG_SECONDS, SAY_SECONDS, OverloadTask
from flask_workersize.runtime.queue_times import PERIOD_SECONDS, note_shed, note_wait
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import Snapshot


def look() -> Snapshot:
    raise AssertionError("no table is needed")


class Site:
    """A server whose requests wait as the test says."""

    def __init__(self, bound: float | None) -> None:
        self.now = 1000.0
        self.board = Scoreboard(1, 1)
        self.task = OverloadTask(self.board, bound)

    def run(self, *waited: float, shed: int = 0, after: float = PERIOD_SECONDS) -> None:
        for seconds in waited:
            note_wait(self.board.queue_times.cells, 0, seconds, int(self.now * 1e9))
        for _ in range(shed):
            note_shed(self.board.queue_times.cells, 0)
        for _ in range(int(after / PERIOD_SECONDS)):
            self.now += PERIOD_SECONDS
            self.task.run(self.now, look)


def test_waits_of_the_last_minute_are_written_down() -> None:
    site = Site(None)
    site.run()
    assert site.board.read().waits is None
    site.run(0.5, 1.5)
    assert site.board.read().waits == (1.0, 1.5)


def test_without_a_bound_one_line_a_minute_says_what_to_set(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site(None)
    site.run(LONG_SECONDS)
    assert caplog.messages == []
    site.run(3.44)
    for _ in range(10):
        site.run(9.0)
    assert caplog.messages == [
        "requests wait up to 3.4 s for a free worker. Add threads, workers or CPUs (flask "
        "workersize measure shows which), or turn away requests that waited longer with "
        "NOW_LMS_QUEUE_SECONDS=0.5."
    ]
    site.run(after=SAY_SECONDS)
    assert "wait up to 9.0 s" in caplog.messages[1]
    # Of a long line the event has what happened.
    kept = [event.text for event in site.board.events.read()]
    assert kept[0].startswith("requests wait up to 3.4 s for a free worker. Add threads, ")


def test_line_names_the_clock_of_a_proxy_that_is_believed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site(None)
    site.task = OverloadTask(site.board, None, is_proxied=True)
    site.run(9.0)
    assert caplog.messages[0].endswith(
        " (Times include X-Request-Start: if none wait, the clocks of proxy and server differ.)"
    )


def test_with_a_bound_a_line_says_how_many_were_turned_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site(0.5)
    site.run(0.4, 3.0)
    assert caplog.messages == []
    site.run(0.6, 1.24, shed=2)
    site.run(0.6, shed=40, after=SAY_SECONDS - 2 * PERIOD_SECONDS)
    site.run(0.6, shed=1, after=2 * PERIOD_SECONDS)
    assert caplog.messages == [
        "2 requests turned away with status 503: waited up to 3.0 s, "
        "NOW_LMS_QUEUE_SECONDS allows 0.5 s. Add threads, workers, CPUs or another server.",
        "41 requests turned away with status 503: waited up to 0.6 s, "
        "NOW_LMS_QUEUE_SECONDS allows 0.5 s. Add threads, workers, CPUs or another server.",
    ]
    site.run()
    assert len(caplog.messages) == 2
    kept = [event.text for event in site.board.events.read()]
    assert kept == [line.removesuffix(".") for line in caplog.messages]
