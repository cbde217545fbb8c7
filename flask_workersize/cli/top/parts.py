"""The parts of one instance in ``flask workersize top``: hour, slots, memory, workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .layout import BARS, LABEL_WIDTH, Line, Look, Piece, flow, sentences, words
from .values import Fields, count, moment, number, share, span

_MOST_BOXES = 200
_MOST_WORKERS = 64
_MOST_EVENTS = 5
_MOST_ADVICE = 5
_MOST_BAR = 40
_MOST_BARS = 60

_QUIET_GUARD = ("", "ok", "off")
_COUNTERS = {
    "served": "served",
    "recycled": "recycled",
    "crashed": "crashed",
    "restarts": "replaced",
    "oom_kills": "OOM-killed",
    "shed": "turned away",
    "abandoned": "abandoned",
}
"""Counters since the start, and their names on the screen."""

_HIGH, _FULL = 0.7, 0.9
"""Shares of the memory limit at which the bar changes colour."""


def hour(report: Fields, look: Look) -> Iterable[Line]:
    """Yield the busy share of the slots in the last hour, one bar a minute."""
    shares = [point.number("utilization") for point in report.objects("history")[-_MOST_BARS:]]
    known = [value for value in shares if value is not None]
    if known:
        text = f" max {100 * min(max(known), 1.0):.0f} %"
        bars = "".join(map(_bar, shares))[-max(look.room - len(text), 0) :]
        yield [("hour".ljust(LABEL_WIDTH), "dim"), (bars, ""), (text, "")]


def _bar(value: float | None) -> str:
    return " " if value is None else BARS[min(int(value * len(BARS)), len(BARS) - 1)]


def boxes(report: Fields, look: Look) -> Iterable[Line]:
    """Yield one box per slot, the longest running request first."""
    timeout = report.number("timeout_seconds")
    running = [value for value in map(number, report.items("running")) if value is not None]
    busy, slots = int(report.number("busy") or 0), int(report.number("slots") or 0)
    pieces: list[Piece] = []
    for seconds in running[:_MOST_BOXES]:
        if timeout and seconds > timeout:
            pieces.append((f"■ {span(seconds)}, over the timeout!", "bad"))
        else:
            pieces.append((f"■ {span(seconds)}", ""))
    # Waiting for a client occupies a slot, too, without a running request.
    pieces += [("■", "dim")] * min(max(busy - len(running), 0), _MOST_BOXES)
    pieces += [("□", "dim")] * min(max(slots - max(busy, len(running)), 0), _MOST_BOXES)
    yield from flow("slots", pieces, look, gap=2)


def why(report: Fields, look: Look) -> Iterable[Line]:
    """Yield both bounds of the plan, with their numbers."""
    bounds = report.object("why")
    limit = report.text("limited_by")
    texts = [
        f"{title}: {bounds.text(name)}{'  <- binds' if limit == name else ''}"
        for name, title in (("cpu", "CPU"), ("memory", "memory"), ("adapts", "adapts within"))
        if name in bounds
    ]
    yield from sentences("why", map(words, texts), look)


def memory(report: Fields, look: Look) -> Iterable[Line]:
    """Yield used memory as a bar up to the limit, and the state of the memory guard."""
    used, limit = report.number("memory_used_mb"), report.number("memory_limit_mb")
    if used is None:
        return
    bar: Line = []
    text = f"{count(used)} MB used"
    if limit:
        text = f" {count(used)} of {count(limit)} MB"
        width = max(min(look.room - len(text), _MOST_BAR), 0)
        full = share(used, limit)
        style = "bad" if full >= _FULL else "warn" if full >= _HIGH else "good"
        bar = [("█" * round(full * width), style), ("░" * (width - round(full * width)), "dim")]
    yield [("memory".ljust(LABEL_WIDTH), "dim"), *bar, (text, "")]
    guard, shared = report.text("guard"), report.number("shared_memory_mb")
    each = f"{count(report.number('worker_memory_mb'))} MB a worker"
    planned = f"{count(shared)} MB shared, {each}" if shared else each
    pieces: list[Piece] = [(f"planned: {planned}", "")]
    if guard not in _QUIET_GUARD:
        pieces.append((f"guard: {guard}", "warn"))
    yield from flow("", pieces, look)


def to_do(report: Fields, look: Look) -> Iterable[Line]:
    """Yield the server's advice, and its warnings if the token was sent."""
    for name, label in (("advice", "do"), ("warnings", "warning")):
        texts = [words(text, "warn") for text in report.texts(name)[:_MOST_ADVICE]]
        yield from sentences(label, texts, look)


def counters(report: Fields, look: Look) -> Iterable[Line]:
    """Yield the counters since the start."""
    counted = {name: report.number(name) for name in _COUNTERS}
    pieces = [
        (f"{count(value)} {_COUNTERS[name]}", "")
        for name, value in counted.items()
        if value or (name == "served" and value is not None)
    ]
    if pieces:
        yield from flow("so far", pieces, look)


def events(report: Fields, look: Look, now: float) -> Iterable[Line]:
    """Yield the last events, the oldest first, with their local time."""
    texts = [
        [(moment(event.number("at"), now), "dim"), *words(event.text("text"))]
        for event in report.objects("events")[-_MOST_EVENTS:]
    ]
    yield from sentences("events", texts, look)


_COLUMNS = ("pid", "age", "served", "busy", "longest", "memory", "of plan", "sampled")
_WIDTHS = (8, 7, 9, 6, 8, 9, 8, 8)


def workers(report: Fields) -> Iterable[Line]:
    """Yield the table of workers; servers report it only with the token."""
    found = report.objects("processes")
    if found:
        yield [("workers".ljust(LABEL_WIDTH), "dim"), (_row(_COLUMNS), "dim")]
    timeout = report.number("timeout_seconds")
    for worker in found[:_MOST_WORKERS]:
        longest = worker.number("running_seconds")
        is_late = bool(timeout and longest and longest > timeout)
        cells = _cells(worker, report.number("worker_memory_mb"))
        yield [(" " * LABEL_WIDTH, ""), (_row(cells), "bad" if is_late else "")]
    if len(found) > _MOST_WORKERS:
        yield [(f"{' ' * LABEL_WIDTH}and {count(len(found) - _MOST_WORKERS)} more", "dim")]


def _cells(worker: Fields, planned_mb: float | None) -> Sequence[str]:
    longest, size = worker.number("running_seconds"), worker.number("uss_mb")
    size = worker.number("rss_mb") if size is None else size
    return (
        # No thousands separator in a process id.
        count(worker.number("pid")).replace(",", ""),
        span(worker.number("age_seconds")),
        count(worker.number("served")),
        f"{count(worker.number('busy'))}/{count(worker.number('slots'))}",
        span(longest) if longest else "-",
        f"{count(size)} MB",
        f"{100 * size / planned_mb:.0f} %" if size is not None and planned_mb else "-",
        span(worker.number("memory_age_seconds")),
    )


def _row(cells: Sequence[str]) -> str:
    return "".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
