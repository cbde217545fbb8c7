"""Threads started by loading the app: a fork does not copy them."""

from __future__ import annotations

from collections.abc import Iterable

from ..runtime.inherited import named, origin
from .finding import Case, Finding
from .fork_probe import NO_WORKER
from .schedulers import scheduler_threads


def threads_before_fork(case: Case) -> Iterable[Finding]:
    """Find threads that workers do not have, or have more than once."""
    if not case.threads:
        return
    known = scheduler_threads()
    others = [(thread.name, origin(thread)) for thread in case.threads if thread not in known]
    worker = case.worker if case.preload and others else None
    missing = [thread for thread in others if not worker or thread[1] not in worker.threads]
    if not missing:
        return
    what = f"Loading the app starts threads: {named(missing)}."
    remedy = "Start them in a receiver of the signal worker_forked, or with the first request."
    if not case.preload:
        once = "Run work that must happen only once in a process of its own."
        yield Finding("multiplies", f"{what} Each of {case.workers} workers has its own.", once)
    elif worker is None:
        yield Finding("unseen", f"{what} {NO_WORKER}", remedy)
    else:
        yield Finding("breaks", f"{what} They stay in the launcher; no worker has them.", remedy)
