"""Threads that loading the app has started: a fork does not take them along."""

from __future__ import annotations

from collections.abc import Iterable

from .finding import Case, Finding, shown
from .fork_probe import NO_WORKER, origin
from .schedulers import scheduler_threads

_MINDFUL = frozenset({"flask_workersize", "sentry_sdk"})
"""Packages whose threads look at the process id, and are started again where it is another."""


def threads_before_fork(case: Case) -> Iterable[Finding]:
    """Find threads that workers do not have, or have more than once."""
    if not case.threads:
        return
    told = scheduler_threads()
    others = {
        thread: origin(thread)
        for thread in case.threads
        if thread not in told and origin(thread).partition(".")[0] not in _MINDFUL
    }
    worker = case.worker if case.preload and others else None
    if worker is not None:
        others = {thread: where for thread, where in others.items() if where not in worker.threads}
    if not others:
        return
    names = shown(f"{thread.name} in {where}" for thread, where in others.items())
    if case.preload and worker is None:
        yield Finding(
            "unseen",
            f"Threads are started when the app is loaded: {names}. {NO_WORKER}",
            "Make sure that each worker starts those that it needs.",
        )
    elif case.preload:
        yield Finding(
            "breaks",
            f"Threads are started when the app is loaded: {names}. They stay in the launcher, and "
            "a worker has none of them.",
            "Start them in a receiver of the signal worker_forked, or with the first request of a "
            "worker.",
        )
    else:
        yield Finding(
            "multiplies",
            f"Threads are started when the app is loaded: {names}. Each worker has its own, "
            f"{case.workers} times in all.",
            "Run in a process of its own what has to be done once.",
        )
