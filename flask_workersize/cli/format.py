"""How a plan came about, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ..resources import Resources
from ..sizing.plan import MB, SizingPlan
from ..sizing.settings import NAMES, SizingSettings
from ..sizing.what_if import memory_needed_mb, one_more

Row = tuple[str, str, str]

_SECRET = frozenset({"health_token"})
_ADDRESS = ("host", "port", "bind")
_UNITS = {"_mb": " MB", "_percent": " %", "_seconds": " s", "timeout": " s"}


def explain(
    settings: SizingSettings, resources: Resources, plan: SizingPlan, show_all: bool = False
) -> str:
    """Return the plan in one line, then what was asked, found and concluded, with every source.

    Settings that are at their defaults and feed no plan are left out unless ``show_all``.
    """
    blocks: dict[str, Iterable[Row]] = {
        "asked": _asked(settings, plan, show_all),
        "found": _found(resources),
        "bounds": _bounds(settings, plan),
    }
    lines = [str(plan)]
    for title, rows in blocks.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<24} {value:<14} {why}".rstrip() for name, value, why in rows]
    lines += _needed(settings, plan)
    lines += [f"Warning: {warning}" for warning in plan.warnings]
    lines += [f"Note: {note}" for note in (*resources.notes, *plan.notes)]
    return "\n".join(lines)


def as_json(settings: SizingSettings, resources: Resources, plan: SizingPlan) -> str:
    """Return the same as JSON; of a secret only that it is set."""
    asked: dict[str, Any] = {}
    for name, value in settings.model_dump(mode="json").items():
        shown = "set" if name in _SECRET and value is not None else value
        asked[name] = {"value": shown, "source": settings.source_of(name)}
    needed = settings.workers or plan.workers
    threads = settings.threads if settings.workers else plan.threads
    told = {
        "summary": str(plan),
        "plan": plan.to_dict(),
        "settings": asked,
        "resources": asdict(resources),
        "needed": {
            "workers": needed,
            "memory_available_mb": memory_needed_mb(settings, needed, threads),
        },
        "one_more": one_more(settings, plan),
    }
    return json.dumps(told, indent=2, ensure_ascii=False)


def _asked(settings: SizingSettings, plan: SizingPlan, show_all: bool) -> Iterable[Row]:
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
    """Return the value of a setting with its unit; of a secret only that it is set."""
    if value is None:
        return "none"
    if name in _SECRET:
        return "set"
    if isinstance(value, bool):
        return "on" if value else "off"
    unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    return (", ".join(value) if isinstance(value, tuple) else str(value)) + unit


def _found(resources: Resources) -> Iterable[Row]:
    yield "CPUs", f"{resources.cpus:g}", _place(resources.cpu_source, resources.cpu_at)
    memory = _place(resources.memory_source, resources.memory_at)
    yield "memory limit", f"{resources.memory_limit // MB} MB", memory
    yield (
        "memory available",
        f"{resources.memory_available // MB} MB",
        resources.memory_source if resources.memory_source.startswith("--") else "now",
    )


def _place(source: str, folder: str | None) -> str:
    """Return the source and the file it was read from."""
    if folder is None:
        return source
    name = source.partition(":")[2]
    file = "memory.stat" if name == "hierarchical_memory_limit" else name
    return f"{source}  {folder}/{file}"


def _bounds(settings: SizingSettings, plan: SizingPlan) -> Iterable[Row]:
    formula = f"2 × {plan.cpus:g} CPUs + 1, rounded down"
    yield "CPU bound", str(plan.cpu_bound), formula + _binds(plan, "cpu")
    share = 100 - settings.memory_headroom_percent
    available = f"{plan.memory_available_mb} MB" + ("" if share == 100 else f" × {share} %")
    yield "memory bound", str(plan.memory_bound), _memory_formula(settings, plan, available)
    yield "limited by", plan.limited_by, ""
    yield "estimated memory", f"{plan.estimated_memory_mb} MB", _estimate(settings, plan)


def _memory_formula(settings: SizingSettings, plan: SizingPlan, available: str) -> str:
    shared, own = settings.memory_of_a_worker(plan.threads if plan.server == "gunicorn" else 1)
    formula = f"{available} / {own} MB, rounded down"
    if settings.profile and plan.server == "waitress":
        each = settings.profile.costs.each_thread_mb
        formula = (
            f"1 + ({available} - {shared} MB shared - {own} MB) / {round(each, 2):g} MB a thread"
        )
    elif settings.profile:
        formula = f"({available} - {shared} MB shared) / {own} MB, rounded down"
        if plan.threads > 1:
            formula += f", × {plan.threads} threads"
    return formula + _binds(plan, "memory")


def _binds(plan: SizingPlan, bound: str) -> str:
    return "  <- binds" if plan.limited_by == bound else ""


def _estimate(settings: SizingSettings, plan: SizingPlan) -> str:
    formula = f"{plan.workers} × {settings.memory_of_a_worker(plan.threads)[1]} MB"
    if plan.shared_memory_mb:
        formula = f"{plan.shared_memory_mb} MB shared + {formula}"
    needed = memory_needed_mb(settings, plan.workers, plan.threads)
    return formula if plan.fits else f"{formula}: needs {needed} MB available"


def _needed(settings: SizingSettings, plan: SizingPlan) -> Iterable[str]:
    if settings.workers is not None:
        memory = f"{memory_needed_mb(settings, settings.workers)} MB available memory"
        subject = "1 worker needs" if settings.workers == 1 else f"{settings.workers} workers need"
        server = "" if plan.server == "gunicorn" else "; that is for gunicorn, waitress has one"
        yield f"{subject} {memory}{server}"
    yield _one_more(settings, plan)


def _one_more(settings: SizingSettings, plan: SizingPlan) -> str:
    needed = one_more(settings, plan)
    parts = []
    if "cpus" in needed:
        parts.append(f"{needed['cpus']:g} CPU{'' if needed['cpus'] == 1 else 's'}")
    if "memory_available_mb" in needed:
        parts.append(f"{needed['memory_available_mb']} MB available memory")
    if "setting" in needed:
        parts.append(f"a higher {needed['setting']}")
    return f"one {needed['what']} more needs {' and '.join(parts) or 'nothing'}"
