"""A plan with its reasons, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..errors import printable
from ..resources import Resources
from ..sizing.adaptive import AdaptiveBounds, begins
from ..sizing.plan import MB, SizingPlan, counted
from ..sizing.settings import NAMES, SizingSettings
from ..sizing.what_if import memory_needed_mb, one_more

Row = tuple[str, str, str]

_LEAST_WIDTH, _MOST_WIDTH = 14, 28
"""Least and most width of the column of values."""

_ADDRESS = ("host", "port", "bind")
_UNITS = {"_mb": " MB", "_percent": " %", "_seconds": " s", "timeout": " s"}


def explain(
    settings: SizingSettings,
    resources: Resources,
    plan: SizingPlan,
    show_all: bool = False,
    adaptive: AdaptiveBounds | None = None,
) -> str:
    """Return the plan in one line, then settings, resources and bounds, each with its source.

    Settings at their defaults that do not affect the plan are only shown with ``show_all``.
    ``adaptive``: the bounds of an adaptive size.
    """
    rows = {
        "settings:": list(_settings(settings, plan, show_all)),
        "found:": list(_found(resources)),
        "bounds:": list(_bounds(settings, plan)),
    }
    if adaptive:
        rows["adapts:"] = [
            ("workers", str(adaptive.workers), adaptive.reasons["workers"]),
            ("threads", str(adaptive.threads), adaptive.reasons["threads"]),
        ]
    lines = [
        *[begins(plan, adaptive), *_tables(rows)],
        *_needed(settings, plan),
        *[f"Warning: {warning}" for warning in plan.warnings],
        *[f"Note: {note}" for note in (*resources.notes, *plan.notes)],
    ]
    return "\n".join(map(printable, lines))


def _tables(tables: Mapping[str, Sequence[Row]]) -> Iterable[str]:
    """Yield the lines of tables with common column widths.

    A value longer than the column has its source on the next line.
    """
    lengths = [len(value) for rows in tables.values() for _, value, _ in rows]
    width = max(_LEAST_WIDTH, *(length for length in lengths if length <= _MOST_WIDTH))
    for title, rows in tables.items():
        yield title
        for name, value, why in rows:
            if len(value) <= width:
                yield f"  {name:<24} {value:<{width}} {why}".rstrip()
            else:
                yield f"  {name:<24} {value}"
                yield f"  {'':<24} {'':<{width}} {why}"


def as_json(
    settings: SizingSettings,
    resources: Resources,
    plan: SizingPlan,
    adaptive: AdaptiveBounds | None = None,
) -> str:
    """Return the same as JSON. Of a secret it only shows that it is set."""
    values = settings.model_dump(mode="json")
    if settings.health_token:
        values["health_token"] = "set"
    needed = settings.workers or plan.workers
    threads = settings.threads if settings.workers else plan.threads
    server = "gunicorn" if settings.workers else plan.server
    told = {
        "summary": str(plan),
        "plan": plan.to_dict(),
        "settings": {
            name: {"value": value, "source": settings.source_of(name)}
            for name, value in values.items()
        },
        "resources": asdict(resources),
        "needed": {
            "workers": needed,
            "memory_available_mb": memory_needed_mb(settings, needed, threads, server),
        },
        "one_more": one_more(settings, plan),
    }
    if adaptive:
        told["adapts"] = {
            name: {**getattr(adaptive, name)._asdict(), "reason": reason}
            for name, reason in adaptive.reasons.items()
        }
    # A file name need not be UTF-8: JSON can only hold the rest as escapes.
    text = json.dumps(told, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _settings(settings: SizingSettings, plan: SizingPlan, show_all: bool) -> Iterable[Row]:
    planned: dict[str, Any] = {
        "wsgi_server": plan.server,
        "workers": plan.workers,
        "threads": plan.threads,
        "worker_memory_mb": plan.worker_memory_mb,
    }
    if settings.profile is not None and settings.sizing_profile is None:
        planned["sizing_profile"] = "found"
    sources = {**settings.sources, **{name: plan.sources[name] for name in ("workers", "threads")}}
    for name in NAMES:
        source = sources.get(name, "default")
        if name not in _ADDRESS and (show_all or name in planned or source != "default"):
            yield name, shown(name, planned.get(name, getattr(settings, name))), source
    names = ("bind",) if settings.bind else ("host", "port")
    source = ", ".join(dict.fromkeys(settings.source_of(name) for name in names))
    yield "address", ", ".join(settings.addresses), source


def shown(name: str, value: Any) -> str:
    """Return the value of a setting with its unit. Of a secret it only shows that it is set."""
    if value is None:
        return "none"
    if name == "health_token":
        return "set"
    if isinstance(value, bool):
        return "on" if value else "off"
    unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    return (", ".join(value) if isinstance(value, tuple) else str(value)) + unit


def _found(resources: Resources) -> Iterable[Row]:
    yield "CPUs", f"{resources.cpus:g}", _place(resources.cpu_source, resources.cpu_at)
    memory = _place(resources.memory_source, resources.memory_at)
    yield "memory limit", f"{resources.memory_limit // MB} MB", memory
    when = resources.memory_source if resources.memory_source.startswith("--") else "now"
    yield "memory available", f"{resources.memory_available // MB} MB", when


def _place(source: str, folder: str | None) -> str:
    """Return the source, and the file that it was read from."""
    if folder is None:
        return source
    name = source.partition(":")[2]
    file = "memory.stat" if name == "hierarchical_memory_limit" else name
    return f"{source}  {folder}/{file}"


def _bounds(settings: SizingSettings, plan: SizingPlan) -> Iterable[Row]:
    binds = {plan.limited_by: "  <- binds"}
    yield "CPU bound", str(plan.cpu_bound), plan.cpu_formula + binds.get("cpu", "")
    yield "memory bound", str(plan.memory_bound), plan.memory_formula + binds.get("memory", "")
    yield "limited by", plan.limited_by, ""
    each_mb = (plan.estimated_memory_mb - plan.shared_memory_mb) // plan.workers
    estimate = f"{plan.workers} × {each_mb} MB"
    if plan.shared_memory_mb:
        estimate = f"{plan.shared_memory_mb} MB shared + {estimate}"
    if not plan.fits:
        needed = memory_needed_mb(settings, plan.workers, plan.threads, plan.server)
        estimate += f": needs {needed} MB available"
    yield "estimated memory", f"{plan.estimated_memory_mb} MB", estimate


def _needed(settings: SizingSettings, plan: SizingPlan) -> Iterable[str]:
    if settings.workers is not None:
        needs = f"need{'s' if settings.workers == 1 else ''}"
        needed_mb = memory_needed_mb(settings, settings.workers, None, "gunicorn")
        memory = f"{needed_mb} MB available memory"
        server = "" if plan.server == "gunicorn" else " (gunicorn; waitress has one process)"
        yield f"{counted(settings.workers, 'worker')} {needs} {memory}{server}"
    needed = one_more(settings, plan)
    parts = []
    if "cpus" in needed:
        parts.append(counted(needed["cpus"], "CPU"))
    if "memory_available_mb" in needed:
        parts.append(f"{needed['memory_available_mb']} MB available memory")
    if "setting" in needed:
        parts.append(f"a higher {needed['setting']}")
    yield f"one more {needed['what']} needs {' and '.join(parts) or 'nothing'}"
