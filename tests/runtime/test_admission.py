"""Which requests are computed, and what a proxy's time stamp is worth: pure rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.runtime.admission import (
    GONE_SECONDS,
    MOST_PROXY_SECONDS,
    ProxyClock,
    Verdict,
    judge,
    proxy_seconds,
)

NOW = 1_790_000_000.5
waits = st.floats(0, 1000)
bounds = st.none() | st.floats(0.001, 100)


def never_asked() -> bool:
    raise AssertionError("asked for the client")


@given(waits, bounds, st.booleans(), st.booleans())
def test_request_is_computed_unless_one_of_the_two_reasons_holds(
    waited: float, bound: float | None, gone: bool, stops: bool
) -> None:
    verdict = judge(waited, bound, lambda: gone, stops)
    has_gone = gone and waited > GONE_SECONDS and not stops
    is_late = bound is not None and waited > bound
    expected = Verdict.ABANDONED if has_gone else Verdict.SHED if is_late else Verdict.SERVE
    assert verdict is expected


@given(st.floats(0, GONE_SECONDS), st.booleans())
def test_client_is_not_asked_for_without_a_queue(waited: float, stops: bool) -> None:
    """One that closes its half of the connection after asking is served as ever."""
    assert judge(waited, None, never_asked, stops) is Verdict.SERVE


@given(waits)
def test_client_is_not_asked_for_at_a_stop(waited: float) -> None:
    assert judge(waited, None, never_asked, is_stopping=True) is Verdict.SERVE


@given(waits, st.floats(0.001, 100))
def test_who_waits_longer_is_never_better_off(waited: float, bound: float) -> None:
    if judge(waited, bound, lambda: False, False) is Verdict.SHED:
        assert judge(waited + 1, bound, lambda: False, False) is Verdict.SHED


# What a proxy says


@pytest.mark.parametrize("prefix", ["", "t="])
@pytest.mark.parametrize(
    "text", ["1789999998.250", "1789999998250", "1789999998250000", " 1789999998.25 "]
)
def test_time_of_a_proxy_is_read_in_each_unit(prefix: str, text: str) -> None:
    assert proxy_seconds(prefix + text.strip(), NOW) == pytest.approx(2.25, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        *("", "t=", "soon", "t=t=1789999998", "1789999998,5", "-1789999998", "1e9", "nan", "inf"),
        *(
            "1790000001",
            "t=1790000002000",
            "9" * 20,
            "9" * 500,
            "0",
            "12",
            "1789990000",
            "١٧٨٩٩٩٩٩٩٨",
        ),
        *("1789999998.25; DROP", "1789999998\r\nX: 1", "١٧٨٩٩٩٩٩٩٨"),
    ],
)
def test_nonsense_and_the_future_are_ignored(text: str) -> None:
    assert proxy_seconds(text, NOW) is None


@given(st.text() | st.from_regex(r"(t=)?[0-9.]{1,30}"))
def test_whatever_is_sent_is_a_time_within_bounds_or_nothing(text: str) -> None:
    seconds = proxy_seconds(text, NOW)
    assert seconds is None or 0 <= seconds < 3600


@given(st.floats(0, 3000), st.lists(st.floats(0, 25), min_size=1, max_size=20))
def test_clock_of_another_machine_turns_nobody_away(late: float, gaps: list[float]) -> None:
    """All requests are late by the same."""
    clock, now = ProxyClock(), 1000.0
    for gap in gaps:
        now += gap
        assert clock.excess(late, now) == 0


@given(st.floats(0, 1000), st.floats(0, 100), st.floats(0, 29))
def test_wait_beyond_the_clocks_error_counts(late: float, waited: float, later: float) -> None:
    clock = ProxyClock()
    clock.excess(late, 1000.0)
    found = clock.excess(late + waited, 1000.0 + later)
    assert found == pytest.approx(min(waited, MOST_PROXY_SECONDS), abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 3000)), max_size=50))
def test_wait_is_never_longer_than_the_proxy_says(asked: list[tuple[float, float]]) -> None:
    clock, now = ProxyClock(), 0.0
    for gap, seconds in asked:
        now += gap
        assert 0 <= clock.excess(seconds, now) <= min(seconds, MOST_PROXY_SECONDS)


def test_clock_that_is_set_is_known_after_a_minute() -> None:
    clock = ProxyClock()
    clock.excess(0.0, 15.0)
    assert clock.excess(20.0, 16.0) == 20.0
    assert clock.excess(20.0, 59.0) == 20.0
    assert clock.excess(20.0, 100.0) == 0.0
