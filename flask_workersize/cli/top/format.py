"""What ``flask workersize top`` shows: reports of any version, as lines for a terminal; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .layout import Line, Look, Piece, drawn, flow, words
from .parts import boxes, counters, events, hour, memory, to_do, why, workers
from .values import Answer, Fields, count, plain, rate, span

_LIMITS = {
    "cpu": "limited by CPU",
    "memory": "limited by memory",
    "explicit": "fixed size",
    "min_workers": "limited by the minimum",
    "max_workers": "limited by the maximum",
}
_STATUS = {"pass": "good", "warn": "warn", "fail": "bad"}

_TOKEN = "Live figures: use the health port, or set NOW_LMS_HEALTH_TOKEN to the server's token."
_UNSERVED = "No live figures: this app is not served by flask-workersize."


def screen(answers: Sequence[Answer], look: Look, now: float) -> list[str]:
    """Return the answers as lines, none wider than the terminal.

    One instance is shown in full; of several, each in a few lines, below their sum.

    :param answers: the answer of each server
    :param look: width and abilities of the terminal
    :param now: seconds since 1970
    """
    if len(answers) == 1:
        return drawn(_instance(answers[0], look, now), look)
    lines = [_total(answers)]
    for answer in answers:
        lines += [[], *_short(answer, look)]
    return drawn(lines, look)


def _instance(answer: Answer, look: Look, now: float) -> Iterable[Line]:
    if answer.report is None:
        yield from _failed(answer, look)
        return
    report = Fields(answer.report)
    yield _title(answer.url, report)
    yield [(_size(report), "")]
    if "busy" in report:
        yield from flow("now", list(_load(report)), look, most=5)
        yield from hour(report, look)
        yield from boxes(report, look)
    else:
        is_served = report.is_true("serving")
        yield from flow("now", words(_TOKEN if is_served else _UNSERVED), look, gap=1)
    yield from why(report, look)
    yield from memory(report, look)
    yield from to_do(report, look)
    yield from counters(report, look)
    yield from events(report, look, now)
    yield from workers(report)


def _short(answer: Answer, look: Look) -> Iterable[Line]:
    """Yield the few lines of one instance of several."""
    if answer.report is None:
        yield from _failed(answer, look)
        return
    report = Fields(answer.report)
    yield [*_title(answer.url, report), (f"   {_size(report)}", "")]
    if "busy" in report:
        yield from flow("now", list(_load(report)), look, most=1)
        yield from hour(report, look)
    for text in report.texts("advice")[:1]:
        yield from flow("do", words(text, "warn"), look, gap=1, most=1)


def _failed(answer: Answer, look: Look) -> Iterable[Line]:
    """Yield why there is no report, on one line if it fits."""
    start: Line = [(plain(answer.url), "bold"), (": ", "")]
    problem = plain(answer.problem)
    if sum(len(text) for text, _ in start) + len(problem) <= look.width:
        yield [*start, (problem, "bad")]
    else:
        yield start
        yield from flow("", words(problem, "bad"), look, gap=1)


def _total(answers: Sequence[Answer]) -> Line:
    """Return the sums over all instances, as one line."""
    reports = [Fields(answer.report) for answer in answers if answer.report is not None]

    def total(name: str, part: str = "") -> float | None:
        known = [(report.object(part) if part else report).number(name) for report in reports]
        found = [value for value in known if value is not None]
        return sum(found) if found else None

    style = "bold" if len(reports) == len(answers) else "bad"
    line = [(f"{len(reports)} of {len(answers)} instances answer", style)]
    busy, queued, requests = total("busy"), total("queued"), total("requests_per_second", "rates")
    if busy is not None:
        line.append((f"   busy {count(busy)} of {count(total('slots'))}", ""))
    if queued is not None:
        line.append((f"   waiting {count(queued)}", "warn" if queued else ""))
    if requests is not None:
        line.append((f"   {rate(requests)} req/s", ""))
    return line


def _title(url: str, report: Fields) -> Line:
    status = report.text("status") or "?"
    style = _STATUS.get(status, "")
    if report.is_true("draining"):
        status, style = "draining", "warn"
    up = f"   up {span(report.number('uptime_seconds'))}" if "uptime_seconds" in report else ""
    return [(plain(url), "bold"), ("   ● ", style), (status, style), (up, "")]


def _size(report: Fields) -> str:
    parts = [f"{report.text('server') or '?'} {_planned(report)}"]
    limit = report.text("limited_by")
    if limit:
        parts.append(_LIMITS.get(limit, f"limited by {limit}"))
    alive, wanted = report.number("workers_alive"), report.number("workers_wanted")
    if alive is not None and wanted is not None and alive != wanted:
        parts.append(f"{count(alive)} of {count(wanted)} workers run")
    elif alive is not None and alive != report.number("workers"):
        parts.append(f"{count(alive)} workers now")
    return " · ".join(parts)


def _planned(report: Fields) -> str:
    return f"{count(report.number('workers'))} × {count(report.number('threads'))}"


def _load(report: Fields) -> Iterable[Piece]:
    """Yield slots, queue and rates."""
    busy, slots, queued = (report.number(name) for name in ("busy", "slots", "queued"))
    is_full = busy is not None and slots is not None and busy >= slots
    yield f"busy {count(busy)} of {count(slots)}", "warn" if is_full else ""
    yield f"waiting {count(queued)}", "warn" if queued else ""
    rates = report.object("rates")
    if "requests_per_second" in rates:
        yield f"{rate(rates.number('requests_per_second'))} req/s", ""
    mean, cpu = rates.number("mean_ms"), rates.number("cpu_ms")
    if mean is not None:
        computing = "" if cpu is None else f" ({_milliseconds(cpu)} computing)"
        yield f"{_milliseconds(mean)} ms each{computing}", ""
    waited, longest = report.number("queue_mean_seconds"), report.number("queue_most_seconds")
    if waited is not None and longest is not None and longest >= 0.001:
        yield f"waited {span(waited)}, at most {span(longest)}", ""


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"
