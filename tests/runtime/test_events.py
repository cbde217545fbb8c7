"""The ring of the last events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flask_workersize.runtime.events import LOG_BYTES, MOST_EVENTS, EventLog


def new_log() -> EventLog:
    return EventLog(memoryview(bytearray(LOG_BYTES)))


@given(st.lists(st.tuples(st.text(max_size=300), st.floats(0, 2e9)), max_size=3 * MOST_EVENTS))
def test_the_last_events_are_kept_in_their_order(added: list[tuple[str, float]]) -> None:
    log = new_log()
    for text, at in added:
        log.add(text, at)
    found = log.read()
    assert [event.at for event in found] == [at for _, at in added[-MOST_EVENTS:]]
    for event, (text, _) in zip(found, added[-MOST_EVENTS:], strict=True):
        whole = text.encode("utf-8", "replace").decode()
        assert event.text == whole or (len(whole.encode()) > 200 and len(event.text) <= 233)


def test_log_without_events_is_empty() -> None:
    assert new_log().read() == []


def test_event_knows_the_time() -> None:
    log = new_log()
    log.add("size: 5 × 1 to 5 × 8: requests wait")
    (event,) = log.read()
    assert event.text == "size: 5 × 1 to 5 × 8: requests wait"
    assert event.at > 1.7e9
