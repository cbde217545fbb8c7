"""Connections opened by loading the app: all workers would read the same stream."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from ..log import shown
from ..runtime.inherited import MIXED, connections
from .finding import Case, Finding
from .fork_probe import NO_WORKER


def shared_by_workers(case: Case) -> Iterable[Finding]:
    """Find connections to other processes, besides those in the pools of SQLAlchemy.

    Those have their own finding, and are closed here to distinguish them.
    """
    if not case.preload or not case.connections:
        return
    kept = case.worker.shared if case.worker else case.connections
    for engine in case.engines:
        with suppress(Exception):
            engine.dispose()
    left = connections()
    peers = {peer for key, peer in kept.items() if key in left}
    if peers:
        shares = f"Workers share them and {MIXED}." if case.worker else NO_WORKER
        yield Finding(
            "breaks" if case.worker else "unseen",
            f"Connections are open after loading the app: {shown(sorted(peers))}. {shares}",
            "Open them in a receiver of the signal worker_forked, or with the first request.",
        )
