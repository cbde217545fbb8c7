"""What flask workersize top shows of reports: real ones, and anything else that is JSON."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
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

ROOT = Path(__file__).parents[2]
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


def test_page_shows_what_one_instance_and_several_look_like() -> None:
    """The outputs of the docs, to the letter."""
    several = [
        Answer("http://10.0.0.4:8081", REPORT),
        Answer("http://10.0.0.5:8081", {**REPORT, "status": "warn", "queued": 4, "advice": []}),
        Answer("http://10.0.0.6:8081", None, "no answer (connection refused)"),
    ]
    page = (ROOT / "docs" / "top.rst").read_text()
    blocks = re.findall(r"code-block:: console\n\n((?:    .*\n|\n)+)", page)
    texts = [dedent(block).strip().partition("\n")[2] for block in blocks]
    assert "\n".join(shown(REPORT)) in texts
    assert "\n".join(screen(several, WIDE, NOW)) in texts


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
    assert "hour     __..--:=+***###**+=::-..__..--:=+***#### max 100 %" in plain
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
    assert "not served by flask" in part("now", {**report, "serving": False})


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
        ({"limited_by": "explicit"}, "gunicorn", "fixed size"),
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
