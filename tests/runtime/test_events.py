"""The rings of the last events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.runtime.events import LOG_BYTES, MOST_EVENTS, EventLog
from flask_workersize.runtime.scoreboard import Scoreboard
from tests.children import Children, status_of
from tests.runtime.workers import forks


def new_log() -> EventLog:
    return EventLog(memoryview(bytearray(LOG_BYTES)))


@given(
    st.lists(st.tuples(st.text(max_size=300), st.integers(1, 9)), max_size=3 * MOST_EVENTS),
)
def test_the_last_events_are_kept_in_their_order(added: list[tuple[str, int]]) -> None:
    log, now = new_log(), 0.0
    times = []
    for text, after in added:
        now += after
        times.append(now)
        log.add(text, now)
    found = log.read()
    assert [event.at for event in found] == times[-MOST_EVENTS:]
    for event, (text, _) in zip(found, added[-MOST_EVENTS:], strict=True):
        assert event.text.isprintable()
        assert len(event.text.encode()) <= 232
        assert len(event.text) == len(text) or len(text.encode("utf-8", "replace")) > 200


def test_log_without_events_is_empty() -> None:
    assert new_log().read() == []


def test_event_knows_the_time() -> None:
    log = new_log()
    log.add("size: 5 × 1 to 5 × 8: requests wait")
    (event,) = log.read()
    assert event.text == "size: 5 × 1 to 5 × 8: requests wait"
    assert event.at > 1.7e9


@pytest.mark.parametrize("length", range(225, 240))
def test_what_is_too_long_is_cut_between_two_characters(length: int) -> None:
    for text in ("×" * length, "a" + "×" * length, "€" * length, "x" * length):
        log = new_log()
        log.add(text)
        (event,) = log.read()
        if len(text.encode()) <= 232:
            assert event.text == text
        else:
            assert event.text[-1] == "…"
            assert text.startswith(event.text[:-1])
            assert 228 <= len(event.text.encode()) <= 232


def test_of_sentences_those_stay_that_there_is_room_for() -> None:
    log = new_log()
    first, second = "memory: 500 of 512 MB in use", f"Recycling won't help: {'x' * 100}"
    log.add(f"{first}. {second}. {'y' * 100}")
    assert log.read()[0].text == f"{first}. {second}"


def test_line_is_logged_and_kept_without_its_full_stop(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    log = new_log()
    log.tell(20, "size: 1 × 1 to 1 × 2.")
    log.tell(30, "recycling worker 4711.", "recycling a worker.")
    assert caplog.messages == ["size: 1 × 1 to 1 × 2.", "recycling worker 4711."]
    assert [event.text for event in log.read()] == ["size: 1 × 1 to 1 × 2", "recycling a worker"]


def test_what_a_terminal_would_act_on_is_not_kept() -> None:
    log = new_log()
    log.add("a\x1b[31mb\nc")
    assert log.read()[0].text == "a?[31mb?c"


@forks
def test_master_and_monitor_write_at_the_same_time_and_neither_loses_an_event(
    children: Children,
) -> None:
    board = Scoreboard(1, 1)

    def write(who: str) -> None:
        for number in range(500):
            board.events.add(f"{who} {number}")

    monitor = children(lambda: write("monitor"))
    write("master")
    assert status_of(monitor) == 0
    texts = [event.text for event in board.events.read()]
    assert len(texts) == MOST_EVENTS
    for who in ("master", "monitor"):
        numbers = [int(text.split()[1]) for text in texts if text.startswith(f"{who} ")]
        assert numbers == list(range(500 - len(numbers), 500))
