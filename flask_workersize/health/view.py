"""What the page shows of a report: texts, lists and the geometry of its pictures; pure.

``static/page.js`` has the same functions under the same names, for a page that is open. Each part
of the page is a list of nodes: a text, or the name of an element, its attributes and its nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from math import floor
from typing import Any, TypeAlias

Node: TypeAlias = "str | tuple[str, dict[str, str], list[Node]]"
Report = Mapping[str, Any]

MOST_BOXES = 96
"""How many slots are drawn; the others are a number."""

CRITICAL_PERCENT = 90
"""The share of the limit shortly before which the memory guard removes a worker (monitor)."""

_UNKNOWN = "Unknown: there are no figures of the last hour."
"""Before the monitor has any, or if there is none."""

_LIMITS = {
    "cpu": "limited by CPU",
    "memory": "limited by memory",
    "explicit": "set by hand",
    "min_workers": "at the lower bound for workers",
    "max_workers": "at the upper bound for workers",
}


_GUARDS = {
    "recycling": "; a worker was recycled lately",
    "reduced": "; fewer workers than planned",
    "warn": "; short, and recycling does not help",
    "critical": "; the kernel may kill a process at any moment",
}


def view(report: Report, now: float) -> dict[str, list[Node]]:
    """Return the parts of the page by the id of their element.

    :param report: the report, as its JSON has it
    :param now: seconds since the epoch, to tell how long ago an event was
    """
    shown: dict[str, list[Node]] = {
        "status": [_element("span", report["status"], report["status"])]
    }
    if report["status"] == "fail":
        return shown | {"title": ["Capacity"], "error": [report["error"]]}
    shown |= {"title": ["Capacity"], "line": _line(report), "why": _why(report)}
    shown |= _memory(report)
    remarks = [*(report.get("warnings") or []), *(report.get("notes") or [])]
    if remarks:
        shown["remarks"] = [_element("li", text) for text in remarks]
    if "busy" not in report:
        served = "What happens now is shown with the token."
        not_served = "flask-workersize did not start this process: the plan is what it would use."
        ask: list[Node] = [served if report["serving"] else not_served]
        return shown | {"ask": ask, "ask-title": ["Live figures"]}
    shown["title"] = [f"{report['busy']} of {report['slots']} busy · Capacity"]
    shown |= _now(report) | _history(report.get("history") or [])
    shown |= {"slots": _slots(report), "slots-note": _slots_note(report), "ask-title": ["Workers"]}
    shown["advice"] = [_element("li", text) for text in report.get("advice") or []] or [
        _element("li", "Nothing to do." if report.get("history") else _UNKNOWN, "calm")
    ]
    if "processes" in report:
        shown["workers"] = [
            ("tr", {}, _worker(item, report))
            for item in sorted(report["processes"], key=lambda item: -item["age_seconds"])
        ]
    else:
        shown["ask"] = ["Each worker is shown with the token."]
    shown["counts"] = _counts(report)
    events = report.get("events") or []
    shown["events"] = [_event(item, now) for item in reversed(events)] or [
        _element("li", "None so far.", "calm")
    ]
    return shown


def _element(tag: str, text: str, css: str = "") -> Node:
    return (tag, {"class": css} if css else {}, [text])


def _line(report: Report) -> list[Node]:
    workers = f"{counted(report['workers'], 'worker')} × {counted(report['threads'], 'thread')}"
    if report["server"] == "waitress":
        workers = f"{counted(report['threads'], 'thread')} in one process"
    parts = [report["server"], workers, _LIMITS[report["limited_by"]]]
    if report.get("uptime_seconds") is not None:
        parts.append(f"up {span(report['uptime_seconds'])}")
    if report.get("draining"):
        parts.append("about to stop")
    return [_element("span", part) for part in parts]


def _now(report: Report) -> dict[str, list[Node]]:
    rates, queued = report.get("rates"), report.get("queued")
    full = "full" if report["slots"] and report["busy"] >= report["slots"] else ""
    shown: dict[str, list[Node]] = {
        "busy": [_element("strong", str(report["busy"]), full), f" of {report['slots']}"],
        "busy-note": ["slots"],
        "queued": [
            _element("strong", "–" if queued is None else number(queued), "full" * bool(queued))
        ],
        "queued-note": [
            "not reported here" if queued is None else "nobody waited in the last minute"
        ],
        "rate": [_element("strong", "–")],
        "rate-note": ["requests per second"],
        "mean": [_element("strong", "–")],
        "mean-note": ["per request"],
    }
    if report.get("queue_mean_seconds"):
        mean, most = span(report["queue_mean_seconds"]), span(report["queue_most_seconds"])
        shown["queued-note"] = [f"last minute: {mean} on average, {most} at most"]
    if rates:
        shown["busy-note"] = [f"{number(rates['busy'])} on average over {span(rates['seconds'])}"]
        shown["rate"] = [_element("strong", number(rates["requests_per_second"]))]
        if rates["mean_ms"]:
            time, unit = span(rates["mean_ms"] / 1000).split()
            shown["mean"] = [_element("strong", time), f" {unit}"]
            shown["mean-note"] = [f"per request, {span(rates['cpu_ms'] / 1000)} computing"]
    return shown


def _slots(report: Report) -> list[Node]:
    """Return a box for each slot: requests that run, clients that are waited for, free ones."""
    running, timeout = report.get("running") or [], report.get("timeout_seconds") or 0
    boxes: list[Node] = []
    for index in range(min(max(report["slots"], report["busy"]), MOST_BOXES)):
        if index < len(running):
            css = "over" if timeout and running[index] > timeout else "busy"
            boxes.append(_element("li", span(running[index]), css))
        elif index < report["busy"]:
            boxes.append(_element("li", "client", "held"))
        else:
            boxes.append(_element("li", "free", "free"))
    if report["slots"] > MOST_BOXES:
        boxes.append(_element("li", f"{report['slots'] - MOST_BOXES} more", "more"))
    return boxes


def _slots_note(report: Report) -> list[Node]:
    timeout = report.get("timeout_seconds")
    note = "for how long each request has run"
    return [f"{note}; the timeout is {span(timeout)}" if timeout else note]


def _history(points: Sequence[Report]) -> dict[str, list[Node]]:
    """Return a bar for each of the last 60 minutes, and what they come to."""
    bars: list[Node] = []
    for index, point in enumerate(points):
        height = max(point["utilization"], 0.015)
        place = {"x": percent((60 - len(points) + index) / 60), "y": percent(1 - height)}
        size = {"width": percent(0.013), "height": percent(height)}
        css = {"class": "waited"} if point["waited"] else {}
        bars.append(("rect", {**css, **place, **size, "rx": "1"}, []))
    seconds = sum(point["seconds"] for point in points)
    if not seconds:
        return {"bars": bars, "chart-note": ["Busy slots: no figures yet"]}
    mean = sum(point["utilization"] * point["seconds"] for point in points) / seconds
    most = max(point["utilization"] for point in points)
    requests = sum(point["requests"] for point in points)
    waited = sum(point["waited"] for point in points)
    shares = f"{whole(100 * mean)} % on average, {whole(100 * most)} % at most"
    note: list[Node] = [f"Busy slots: {shares}. {whole(requests)} requests"]
    if waited:
        note += [", ", _element("span", f"{whole(waited)} of them waited", "waited")]
    return {"bars": bars, "chart-note": note}


def _why(report: Report) -> list[Node]:
    formulas, binds = report.get("why") or {}, report["limited_by"]
    rows: list[Node] = []
    for name, title in (("cpu", "CPU"), ("memory", "Memory")):
        value: list[Node] = [formulas.get(name, "")]
        if binds == name:
            value += [" ", _element("b", "binds")]
        rows += [_element("dt", title), ("dd", {}, value)]
    if adapts := formulas.get("adapts"):
        rows += [_element("dt", "Adapts"), ("dd", {}, [f"within {adapts}"])]
    if binds not in ("cpu", "memory"):
        source = (report.get("sources") or {}).get(_DECIDER.get(binds, _explicit(report)))
        value = [_LIMITS[binds] + (f": {source}" if source else ""), " ", _element("b", "binds")]
        rows += [_element("dt", "Setting"), ("dd", {}, value)]
    return rows


_DECIDER = {"min_workers": "min_workers", "max_workers": "max_workers"}


def _explicit(report: Report) -> str:
    return "workers" if report["server"] == "gunicorn" else "threads"


def _memory(report: Report) -> dict[str, list[Node]]:
    """Return the bar of what is used, or of what is planned if nobody may know that."""
    limit, used = report.get("memory_limit_mb"), report.get("memory_used_mb")
    if not limit or used is None:
        limit, used = report["memory_available_mb"], report["estimated_memory_mb"]
        each = [report["worker_memory_mb"]] * report["workers"]
        parts = [("shared", "shared", report["shared_memory_mb"])] * bool(
            report["shared_memory_mb"]
        )
        note = f"Planned: {mb(used)} of {mb(limit)} that were available"
    else:
        sizes_of_workers = [item["uss_mb"] for item in report.get("processes") or []]
        each = [size for size in sizes_of_workers if size is not None]
        name = "shared and others" if each else "used"
        parts = [("shared", name, max(used - sum(each), 0))]
        note = f"{mb(used)} of {mb(limit)} used" + _GUARDS.get(report.get("guard") or "", "")
    if each:
        numbers = ", ".join(map(whole, each[:8])) + ", …" * (len(each) > 8)
        detail = f" ({numbers})" if len(set(map(whole, each))) > 1 else f" × {whole(each[0])}"
        label = counted(len(each), "worker") + detail * (len(each) > 1)
        parts.append(("worker", label, sum(each)))
    parts.append(("free", "free", max(limit - used, 0)))
    sizes = [("shared", size) for css, _, size in parts if css == "shared"]
    sizes += [("worker", size) for size in each]
    scale = max(limit, used, sum(size for _, size in sizes)) or 1
    ends = [sum(size for _, size in sizes[:count]) / scale for count in range(len(sizes) + 1)]
    bars: list[Node] = [
        ("rect", {"class": css, "x": percent(start), "width": percent(end - start)}, [])
        for (css, _), (start, end) in zip(sizes, pairwise(ends), strict=True)
    ]
    recycle = report.get("memory_recycle_percent")
    marks: list[Node] = []
    if recycle is not None and "busy" in report and report.get("guard") != "off":
        share = limit / scale / 100
        for at, text in ((recycle, f"{recycle} % recycle"), (CRITICAL_PERCENT, "90 %")):
            x = percent(at * share)
            marks.append(("line", {"x1": x, "x2": x, "y1": "18", "y2": "46"}, []))
            marks.append(("text", {"x": x, "y": "12"}, [text]))
    return {
        "memory": bars,
        "marks": marks,
        "memory-note": [note],
        "legend": [
            ("li", {"class": css}, [f"{name} ", _element("b", mb(size))])
            for css, name, size in parts
        ],
    }


def _worker(worker: Report, report: Report) -> list[Node]:
    own, planned, age = worker["uss_mb"], report["worker_memory_mb"], worker["memory_age_seconds"]
    cells: list[Node] = [("th", {"scope": "row"}, [str(worker["pid"])])]
    busy = f"{worker['busy']} of {worker['slots']}" if worker["ready"] else "starting"
    for text in (span(worker["age_seconds"]), whole(worker["served"]), busy):
        cells.append(_element("td", text))
    if own is None:
        return [*cells, _element("td", "–"), _element("td", "–")]
    css = "over" if own > planned else ""
    return [
        *cells,
        ("td", {}, [_element("span", whole(own), css), f" of {whole(planned)}"]),
        _element("td", "–" if age is None else span(age)),
    ]


def _counts(report: Report) -> list[Node]:
    names = {
        "served": "served",
        "recycled": "recycled",
        "restarts": "restarted",
        "crashed": "crashed",
        "oom_kills": "OOM-killed",
        "shed": "turned away",
        "abandoned": "abandoned",
    }
    rows: list[Node] = []
    for name, title in names.items():
        if report.get(name) is not None:
            css = "some" if report[name] and name in ("crashed", "oom_kills", "shed") else ""
            rows.append(
                ("div", {}, [_element("dt", title), _element("dd", whole(report[name]), css)])
            )
    return rows


def _event(event: Report, now: float) -> Node:
    at = datetime.fromtimestamp(floor(event["at"]), UTC)
    time: Node = ("time", {"datetime": f"{at:%Y-%m-%dT%H:%M:%SZ}"}, [f"{at:%H:%M} UTC"])
    ago = f"{span(max(now - event['at'], 0))} ago" if now - event["at"] >= 1 else "now"
    return ("li", {}, [time, _element("span", ago, "ago"), _element("span", event["text"], "text")])


def whole(value: float) -> str:
    """Return a number without a fraction, rounded half up, as "1,234"."""
    return f"{floor(value + 0.5):,}"


def number(value: float) -> str:
    """Return a number as "0", "4.2", "82" or "1,234"."""
    tenths = floor(value * 10 + 0.5)
    return f"{tenths / 10:.1f}" if 0 < tenths < 100 and tenths % 10 else whole(value)


def span(seconds: float) -> str:
    """Return a time as "4.2 ms", "12 s", "3 min", "5 h" or "2 d"."""
    if seconds < 0.9995:
        return f"{number(seconds * 1000)} ms"
    if seconds < 59.5:
        return f"{number(seconds)} s"
    for most, unit, name in ((3570, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{whole(seconds / unit)} {name}"
    return f"{whole(seconds / 86_400)} d"


def mb(value: float) -> str:
    """Return memory as "1,234 MB"."""
    return f"{whole(value)} MB"


def percent(share: float) -> str:
    """Return a share as an attribute of SVG, "12.34%"."""
    return f"{floor(share * 10_000 + 0.5) / 100:.2f}%"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, as "1 worker" or "3 workers"."""
    return f"{whole(count)} {noun}{'' if count == 1 else 's'}"
