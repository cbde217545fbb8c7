"""Schedulers of APScheduler, also those of Flask-APScheduler, that run after loading the app."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from ..runtime.inherited import origin
from .finding import Case, Finding, known, living

PACKAGE = "apscheduler"

_REMEDY = "Run the scheduler in a process of its own, or use a task queue or cron."


def running_schedulers(case: Case) -> Iterable[Finding]:
    """Find schedulers whose jobs are repeated by every worker, or out of their reach.

    A scheduler that is not running after loading the app or starting a worker is not a finding:
    it may belong to another command.
    """
    schedulers = _schedulers()
    running = [scheduler for scheduler in schedulers if _runs(scheduler)]
    everywhere = any(map(_may_have_jobs, running))
    if case.preload:
        worker = case.worker if schedulers else None
        everywhere = worker is not None and any(map(_is_ours, worker.threads))
    if everywhere:
        each = f"{case.workers} workers run each job {case.workers} times"
        yield Finding("breaks", f"APScheduler runs in each worker: {each}.", _REMEDY)
    elif running and case.preload:
        yield Finding(
            "breaks",
            "APScheduler starts when the app is loaded: its jobs run only in the launcher, and "
            "jobs that a request adds never run.",
            _REMEDY,
        )


def scheduler_threads() -> set[threading.Thread]:
    """Return the threads that belong to a scheduler or run its jobs."""
    threads = {thread for thread in threading.enumerate() if _is_ours(origin(thread))}
    for scheduler in _schedulers():
        for executor in getattr(scheduler, "_executors", {}).values():
            threads |= getattr(getattr(executor, "_pool", None), "_threads", set())
    return threads


def _schedulers() -> list[Any]:
    version_3 = known("apscheduler.schedulers.base", "BaseScheduler")
    version_4 = known(PACKAGE, "Scheduler"), known(PACKAGE, "AsyncScheduler")
    return living(version_3, *version_4)


def _runs(scheduler: Any) -> bool:
    running = getattr(scheduler, "running", None)
    # Version 4 has a state with a name, and no such flag.
    return bool(scheduler.state.name == "started" if running is None else running)


def _may_have_jobs(scheduler: Any) -> bool:
    """Return whether there is a job; assume one in version 4, and if the store cannot be read."""
    try:
        return not hasattr(scheduler, "running") or bool(scheduler.get_jobs())
    except Exception:
        return True


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE
