"""What ``flask workersize top`` shows: reports of any version, as lines for a terminal; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .layout import Line, Look, Piece, drawn, flow, words
from .parts import boxes, counters, events, hour, memory, to_do, why, workers
from .values import Answer, Told, count, plain, rate, span

_LIMITS = {
    "cpu": "limited by CPU",
    "memory": "limited by memory",
    "explicit": "size is set",
    "min_workers": "limited by the minimum",
    "max_workers": "limited by the maximum",
}
_STATUS = {"pass": "good", "warn": "warn", "fail": "bad"}

_TOKEN = "Live figures: ask the health port, or set NOW_LMS_HEALTH_TOKEN to the server's token."
_UNSERVED = "flask-workersize does not serve this app: there are no live figures."


def screen(answers: Sequence[Answer], look: Look, now: float) -> list[str]:
    """Return what was answered, as lines that are never wider than the terminal.

    One instance is shown in full; of several, each in a few lines, below their sum.

    :param answers: what came from each address
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
    told = Told(answer.report)
    yield _title(answer.url, told)
    yield [(_size(told), "")]
    if "busy" in told:
        yield from flow("now", list(_load(told)), look, most=5)
        yield from hour(told, look)
        yield from boxes(told, look)
    else:
        is_served = told.is_true("serving")
        yield from flow("now", words(_TOKEN if is_served else _UNSERVED), look, gap=1)
    yield from why(told, look)
    yield from memory(told, look)
    yield from to_do(told, look)
    yield from counters(told, look)
    yield from events(told, look, now)
    yield from workers(told)


def _short(answer: Answer, look: Look) -> Iterable[Line]:
    """Yield an instance among others."""
    if answer.report is None:
        yield from _failed(answer, look)
        return
    told = Told(answer.report)
    yield [*_title(answer.url, told), (f"   {_size(told)}", "")]
    if "busy" in told:
        yield from flow("now", list(_load(told)), look, most=1)
        yield from hour(told, look)
    for text in told.texts("advice")[:1]:
        yield from flow("do", words(text, "warn"), look, gap=1, most=1)


def _failed(answer: Answer, look: Look) -> Iterable[Line]:
    """Yield why there is no report: one line, if it fits."""
    start: Line = [(plain(answer.url), "bold"), (": ", "")]
    problem = plain(answer.problem)
    if sum(len(text) for text, _ in start) + len(problem) <= look.width:
        yield [*start, (problem, "bad")]
    else:
        yield start
        yield from flow("", words(problem, "bad"), look, gap=1)


def _total(answers: Sequence[Answer]) -> Line:
    """Return the fleet in one line."""
    reports = [Told(answer.report) for answer in answers if answer.report is not None]

    def total(name: str, part: str = "") -> float | None:
        known = [(told.object(part) if part else told).number(name) for told in reports]
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


def _title(url: str, told: Told) -> Line:
    status = told.text("status") or "?"
    style = _STATUS.get(status, "")
    if told.is_true("draining"):
        status, style = "draining", "warn"
    up = f"   up {span(told.number('uptime_seconds'))}" if "uptime_seconds" in told else ""
    return [(plain(url), "bold"), ("   ● ", style), (status, style), (up, "")]


def _size(told: Told) -> str:
    parts = [f"{told.text('server') or '?'} {_planned(told)}"]
    limit = told.text("limited_by")
    if limit:
        parts.append(_LIMITS.get(limit, f"limited by {limit}"))
    alive, wanted = told.number("workers_alive"), told.number("workers_wanted")
    if alive is not None and wanted is not None and alive != wanted:
        parts.append(f"{count(alive)} of {count(wanted)} workers run")
    elif alive is not None and alive != told.number("workers"):
        parts.append(f"{count(alive)} workers now")
    return " · ".join(parts)


def _planned(told: Told) -> str:
    return f"{count(told.number('workers'))} × {count(told.number('threads'))}"


def _load(told: Told) -> Iterable[Piece]:
    """Yield what happens now: slots, queue, rates."""
    busy, slots, queued = (told.number(name) for name in ("busy", "slots", "queued"))
    is_full = busy is not None and slots is not None and busy >= slots
    yield f"busy {count(busy)} of {count(slots)}", "warn" if is_full else ""
    yield f"waiting {count(queued)}", "warn" if queued else ""
    rates = told.object("rates")
    if "requests_per_second" in rates:
        yield f"{rate(rates.number('requests_per_second'))} req/s", ""
    mean, cpu = rates.number("mean_ms"), rates.number("cpu_ms")
    if mean is not None:
        computing = "" if cpu is None else f" ({_milliseconds(cpu)} computing)"
        yield f"{_milliseconds(mean)} ms each{computing}", ""
    waited, longest = told.number("queue_mean_seconds"), told.number("queue_most_seconds")
    if waited is not None and longest is not None and longest >= 0.001:
        yield f"waited {span(waited)}, at most {span(longest)}", ""


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"
