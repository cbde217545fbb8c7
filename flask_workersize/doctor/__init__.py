"""Check whether an app is safe with more than one worker."""

from __future__ import annotations

from flask import Flask

from ..servers.app_import import AppImport
from ..sizing.plan import SizingPlan
from . import connections, engines, in_memory, schedulers, secret_key, socketio, threads
from .finding import Case, Check, Finding

__all__ = ["Finding", "examine"]

_CHECKS: dict[str, Check] = {
    "Flask-Limiter": in_memory.rate_limits,
    "Flask-Caching": in_memory.caches,
    "APScheduler": schedulers.running_schedulers,
    "SECRET_KEY": secret_key.made_at_start,
    "the threads of the app": threads.threads_before_fork,
    "the connections of SQLAlchemy": engines.connected_before_fork,
    "the pools of SQLAlchemy": engines.pools_multiplied,
    "other connections": connections.shared_by_workers,
    "Flask-SocketIO": socketio.needs_one_worker,
}
_ORDER = ("breaks", "multiplies", "unseen")


def examine(
    app: Flask, plan: SizingPlan, preload: bool = True, location: AppImport | None = None
) -> list[Finding]:
    """Check a loaded app, and return the findings, worst first.

    It forks a worker for a moment if a check needs one, and with a location it loads the app a
    second time, in another process. A check that fails is a finding with level "unseen".
    """
    case = Case(app, preload, max(2, plan.workers), location)
    found: list[Finding] = []
    for name, check in _CHECKS.items():
        try:
            found += check(case)
        # An unknown version of an extension must not end the command.
        except Exception as error:
            what = f"{name}: this check failed ({type(error).__name__})."
            found.append(Finding("unseen", what, "Check it yourself."))
    return sorted(found, key=lambda finding: _ORDER.index(finding.level))
