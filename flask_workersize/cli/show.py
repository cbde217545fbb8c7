"""Say in plain text how a plan came about."""

from __future__ import annotations

from ..plan import SizingPlan
from ..settings import SizingSettings


def explain(settings: SizingSettings, plan: SizingPlan) -> str:
    """Return the plan in one line, each value with its source, and what is to be said of it."""
    values = {
        "workers": str(plan.workers),
        "threads": str(plan.threads),
        "worker_memory_mb": f"{plan.worker_memory_mb} MB",
        "memory_headroom_percent": f"{settings.memory_headroom_percent} %",
        "memory_available_mb": f"{plan.memory_available_mb} MB",
        "cpus": f"{plan.cpus:g}",
    }
    rows = [(name, value, plan.sources[name]) for name, value in values.items()]
    rows += [
        ("cpu_bound", str(plan.cpu_bound), f"2 × {plan.cpus:g} CPUs + 1, rounded down"),
        ("memory_bound", str(plan.memory_bound), "available memory / memory of a worker"),
        ("limited_by", plan.limited_by, ""),
        ("address", ", ".join(settings.addresses), _address_source(settings)),
    ]
    lines = [f"  {name:<24} {value:<16} {source}".rstrip() for name, value, source in rows]
    warnings = [f"Warning: {warning}" for warning in plan.warnings]
    return "\n".join([str(plan), *lines, *warnings, *(f"Note: {note}" for note in plan.notes)])


def _address_source(settings: SizingSettings) -> str:
    names = ("bind",) if settings.bind else ("host", "port")
    return ", ".join(dict.fromkeys(settings.source_of(name) for name in names))
