"""What flask workersize top shows of reports: real ones, and anything else that is JSON."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flask_workersize import CapacityReport
from flask_workersize.cli.top.format import screen
from flask_workersize.cli.top.layout import LEAST_WIDTH, Look, can_show
from flask_workersize.cli.top.values import Answer, moment, span
from tests.cli.reports import NOW, REPORT
from tests.plain import untimed

URL = "http://127.0.0.1:8081"
WIDE = Look()
COLOUR = re.compile(r"\x1b\[[0-9]+m")


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def shown(report: Any, look: Look = WIDE) -> list[str]:
    return [line.rstrip() for line in screen([Answer(URL, report)], look, NOW)]


def part(label: str, report: Any, look: Look = WIDE) -> str:
    """Return the line of a part, and those that go on with it."""
    lines = shown(report, look)
    start = next(number for number, line in enumerate(lines) if line.startswith(label))
    end = next((n for n, line in enumerate(lines) if n > start and line[0] != " "), len(lines))
    return "\n".join(line[9:] for line in lines[start:end])


def columns(text: str) -> int:
    """Return how wide a terminal shows a text."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def test_one_instance_is_shown_in_full() -> None:
    assert shown(REPORT) == [
        "http://127.0.0.1:8081   ● pass   up 2 d",
        "gunicorn 3 × 1 · limited by CPU",
        "now      busy 2 of 3   waiting 0   82 req/s   4.1 ms each (3.2 computing)",
        "         waited 2 ms, at most 300 ms",
        "hour     ▁▃▅██ max 100 %",
        "slots    ■ 2 min, over the timeout!  ■ 3 ms  □",
        "why      CPU: 2 × 1 CPU + 1 = 3 <- binds",
        "         memory: (512 MB available × 70 % - 81 MB shared) / 17 MB a worker = 16",
        "memory   ████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░ 149 of 512 MB",
        "         planned: 81 MB shared, 17 MB a worker   guard: recycling",
        "do       requests waited in 14 % of the last hour: add a replica, or",
        "         NOW_LMS_THREADS=4",
        "so far   120,433 served   2 recycled   2 replaced",
        "events   14 Jan 08:00 recycling worker 4711 (grew 34 MB); 191 of 256 MB in use",
        "         07:55 memory limit changed from 512 to 768 MB: scaling from 3 to 4",
        "workers       pid    age   served  busy longest   memory of plan sampled",
        "             4711 66 min    1,234   1/1   2 min    17 MB   102 %     1 s",
    ]


def test_several_are_shown_in_a_few_lines_each_below_their_sum() -> None:
    answers = [
        Answer("http://a:8081", REPORT),
        Answer("http://b:8081", {**REPORT, "status": "warn", "queued": 4, "advice": []}),
        Answer("http://c:8081", None, "no answer (connection refused)"),
    ]
    assert screen(answers, Look(), NOW) == [
        "2 of 3 instances answer   busy 4 of 6   waiting 4   165 req/s",
        "",
        "http://a:8081   ● pass   up 2 d   gunicorn 3 × 1 · limited by CPU",
        "now      busy 2 of 3   waiting 0   82 req/s   4.1 ms each (3.2 computing) …",
        "hour     ▁▃▅██ max 100 %",
        "do       requests waited in 14 % of the last hour: add a replica, or …",
        "",
        "http://b:8081   ● warn   up 2 d   gunicorn 3 × 1 · limited by CPU",
        "now      busy 2 of 3   waiting 4   82 req/s   4.1 ms each (3.2 computing) …",
        "hour     ▁▃▅██ max 100 %",
        "",
        "http://c:8081: no answer (connection refused)",
    ]


def test_narrow_terminal_has_it_all_but_the_end_of_the_table() -> None:
    lines = shown(REPORT, Look(width=40))
    assert max(map(len, lines)) == 40
    text = " ".join(" ".join(lines).split())
    assert "add a replica, or NOW_LMS_THREADS=4" in text
    assert "memory: (512 MB available × 70 % - 81 MB shared) / 17 MB a worker = 16" in text
    assert "120,433 served 2 recycled 2 replaced" in text


def test_terminal_without_the_characters_gets_others() -> None:
    plain = shown(REPORT, Look(is_ascii=True))
    assert all(map(str.isascii, plain))
    assert "hour     _-=## max 100 %" in plain
    assert "slots    # 2 min, over the timeout!  # 3 ms  ." in plain
    assert list(map(len, plain)) == list(map(len, shown(REPORT)))
    assert [can_show(name) for name in ("utf-8", "latin-1", "ascii", None, "no-such")] == [
        True,
        *[False] * 4,
    ]


def test_colours_change_no_text() -> None:
    coloured = shown(REPORT, Look(has_colour=True))
    assert coloured != shown(REPORT)
    assert [COLOUR.sub("", line).rstrip() for line in coloured] == shown(REPORT)
    assert "\x1b[31m■ 2 min, over the timeout!\x1b[0m" in "".join(coloured)


def test_without_the_token_the_plan_is_shown_and_how_to_see_more() -> None:
    names = {"status", "serving", "server", "workers", "threads", "limited_by", "why"}
    report = {name: value for name, value in REPORT.items() if name in names}
    assert "set NOW_LMS_HEALTH_TOKEN" in part("now", report)
    assert part("why", report).startswith("CPU: 2 × 1 CPU + 1 = 3 <- binds")
    assert "does not serve this app" in part("now", {**report, "serving": False})


def test_every_figure_that_it_reads_is_one_of_the_report() -> None:
    known = CapacityReport.model_json_schema()
    names = set(known["properties"])
    for definition in known["$defs"].values():
        names |= set(definition.get("properties", ()))
    read = {*REPORT, *REPORT["rates"], *REPORT["history"][0], *REPORT["processes"][0]}
    assert read | {"warnings"} <= names


@pytest.mark.parametrize(
    ("changes", "label", "says"),
    [
        ({"draining": True}, "http", "● draining"),
        ({"status": "warn"}, "http", "● warn"),
        ({"workers_alive": 2}, "gunicorn", "2 of 3 workers run"),
        ({"workers_alive": 5, "workers_wanted": 5}, "gunicorn", "5 workers now"),
        ({"limited_by": "explicit"}, "gunicorn", "size is set"),
        ({"queued": None}, "now", "waiting ?"),
        ({"rates": None}, "now", "busy 2 of 3"),
        ({"running": [], "busy": 1}, "slots", "■  □  □"),
        ({"running": [], "busy": 0, "slots": 300}, "slots", "□…"),
        ({"timeout_seconds": None}, "slots", "■ 2 min  ■ 3 ms  □"),
        ({"memory_limit_mb": None}, "memory", "149 MB used"),
        ({"memory_used_mb": 9000}, "memory", "█ 9,000 of 512 MB"),
        ({"shared_memory_mb": 0}, "memory", "planned: 17 MB a worker"),
        ({"oom_kills": 1, "shed": 7}, "so far", "1 OOM-killed   7 turned away"),
        ({"warnings": ["too much"]}, "warning", "too much"),
        ({"processes": [{"pid": 1}] * 99}, "workers", "and 35 more"),
        ({"events": [{"at": None, "text": "a\nb\x1b[2J語"}]}, "events", "--:-- a?b?[2J?"),
    ],
)
def test_figure(changes: dict[str, Any], label: str, says: str) -> None:
    report = {**REPORT, **changes}
    lines = shown(report)
    if label in ("http", "gunicorn"):
        assert says in next(line for line in lines if line.startswith(label))
    else:
        assert says in part(label, report)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (1, "1 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (172800, "2 d"),
        (1e11, "1,157,407 d"),
    ],
)
def test_times_are_in_one_unit(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_moment_that_is_none_is_shown_as_such() -> None:
    assert [moment(at, NOW) for at in (None, 0, 1e30)] == ["--:--"] * 3


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
numbers = st.integers(-1, 10**30) | st.floats()
odd_texts = st.text("ab \x1b\x07\r\n\t語\u0301\u200d\ufeff😀\ud800🇩\u115f ", max_size=300)


def bent(part: Any) -> st.SearchStrategy[Any]:
    """Return anything that has the shape of a part of a report, or not quite."""
    if isinstance(part, dict):
        named = {name: bent(value) for name, value in part.items()}
        return values | st.fixed_dictionaries({}, optional=named)
    if isinstance(part, list):
        return values | st.lists(bent(part[0]), max_size=5)
    return values | (odd_texts if isinstance(part, str) else numbers)


@untimed
@given(
    st.lists(bent(REPORT) | st.none(), min_size=1, max_size=3),
    odd_texts,
    st.builds(Look, st.integers(0, 200), st.booleans(), st.booleans()),
)
@example([{"slots": 1e300, "busy": float("nan"), "running": [float("inf")] * 9}], "", Look(40))
@example([{**REPORT, "events": [{"text": "語" * 1000}]}], "語" * 200, Look(33, True))
def test_anything_fits_and_nothing_of_it_acts_on_the_terminal(
    reports: list[Any], text: str, look: Look
) -> None:
    answers = [
        Answer(f"http://{text}", report, "" if isinstance(report, dict) else text)
        for report in reports
    ]
    for line in screen(answers, look, NOW):
        plain = COLOUR.sub("", line) if look.has_colour else line
        assert columns(plain) <= max(look.width, LEAST_WIDTH)
        assert plain.isprintable()
        assert not any(unicodedata.category(char).startswith("M") for char in plain)
        assert not look.is_ascii or plain.isascii()
