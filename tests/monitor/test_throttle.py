"""A server that the kernel slows down says so, once a minute."""

from __future__ import annotations

import pytest

from flask_workersize.monitor.throttle import (
    INTERVAL_SECONDS,
    LEAST_PRESSURE,
    SAY_SECONDS,
    ThrottleDetector,
)
from flask_workersize.resources.cgroups import Throttling
from flask_workersize.runtime.events import LOG_BYTES, EventLog
from flask_workersize.runtime.snapshot import Snapshot
from tests.plain import MB


def look() -> Snapshot:
    raise AssertionError("no table is needed")


class Site:
    """A group whose figures the test sets."""

    def __init__(self) -> None:
        self.now, self.found = 1000.0, self.figures(0, 0)
        self.events = EventLog(memoryview(bytearray(LOG_BYTES)))
        self.task = ThrottleDetector(self.events, lambda: self.found)

    @staticmethod
    def figures(times: int, pressure: float) -> Throttling | None:
        return Throttling(256 * MB, times, pressure)

    def run(self, times: int, pressure: float, after: float = INTERVAL_SECONDS) -> None:
        self.now, self.found = self.now + after, self.figures(times, pressure)
        self.task.run(self.now, look)


def test_limit_that_was_exceeded_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.run(0, 90)
    site.run(7, 83.4)
    site.run(9, 90)
    site.run(12, 90, SAY_SECONDS)
    first, second = caplog.messages
    assert first == (
        "memory: throttled by the kernel. memory.high (256 MB) exceeded 7 times; processes waited "
        "83 % of the last 10 s for memory. Raise memory.high, or use memory.max (MemoryMax=) "
        "alone."
    )
    assert "exceeded 3 times; processes waited 90 % of" in second
    assert [event.text for event in site.events.read()] == [
        line.removesuffix(".") for line in (first, second)
    ]


def test_what_nobody_notices_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.run(3, LEAST_PRESSURE - 0.01)
    site.run(3, 100)
    assert caplog.messages == []


def test_limit_that_was_set_and_exceeded_between_two_looks_is_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    site.found = None
    site.task.run(site.now + 2, look)
    assert caplog.messages == []
    site.run(9, 100)
    assert "exceeded 9 times" in caplog.text
