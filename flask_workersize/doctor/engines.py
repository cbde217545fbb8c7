"""Engines of SQLAlchemy: connections that are open before the fork, and pools multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flask import Flask

from ..log import shown
from ..sizing.adaptive import most_connections
from ..sizing.plan import counted
from .finding import Case, Finding
from .fork_probe import NO_WORKER

_IN_PROCESS = frozenset({"sqlite", "duckdb"})
"""Dialects without a server whose connections would be counted."""


def connected_before_fork(case: Case) -> Iterable[Finding]:
    """Find open connections that all workers would inherit.

    Those of Flask-SQLAlchemy are renewed in each worker by this package, and others by receivers
    of ``worker_forked``, which run in the probe.
    """
    if not case.preload:
        return
    renewed = {id(engine.pool) for engine in _flask_engines(case).values()}
    connected = {
        i: engine
        for i, engine in enumerate(case.engines)
        if id(engine.pool) not in renewed and _open(engine.pool) and not _is_guarded(engine.pool)
    }
    kept = [each for i, each in connected.items() if not case.worker or i in case.worker.inherited]
    if kept:
        names = ", ".join(sorted({engine.dialect.name for engine in kept}))
        count = counted(sum(_open(engine.pool) for engine in kept), "connection")
        shared = "The launcher and all workers share them." if case.worker else NO_WORKER
        yield Finding(
            "breaks" if case.worker else "unseen",
            f"SQLAlchemy has {count} ({names}) open after loading the app, besides those "
            f"of Flask-SQLAlchemy. {shared}",
            "Call engine.dispose(close=False) in a receiver of the signal worker_forked, or "
            "engine.dispose() at the end of loading.",
        )


def connections_of_a_worker(app: Flask) -> float | None:
    """Return how many connections the pools of one worker can open; ``None`` if there are none."""
    pools = [item.pool for item in Case(app, preload=True, workers=1).engines if _is_counted(item)]
    if not pools:
        return None
    return sum(map(most_connections, pools))


def _is_counted(engine: Any) -> bool:
    """Return whether a server counts the connections of its pool."""
    return engine.dialect.name not in _IN_PROCESS and hasattr(engine.pool, "checkedin")


def pools_multiplied(case: Case) -> Iterable[Finding]:
    """Find pools of connections to a database server, and how many connections they allow."""
    places = {id(engine.pool): ("SQLAlchemy", "create_engine()") for engine in case.engines}
    for key, engine in _flask_engines(case).items():
        bind = f"Flask-SQLAlchemy, bind {shown([key or ''])}", "SQLALCHEMY_BINDS"
        main = "Flask-SQLAlchemy", "SQLALCHEMY_ENGINE_OPTIONS"
        places[id(engine.pool)] = main if key is None else bind
    for engine in case.engines:
        if not _is_counted(engine):
            continue
        name, where = places[id(engine.pool)]
        size, overflow = engine.pool.size(), engine.pool._max_overflow
        total = f"{case.workers} workers × (pool_size {size} + max_overflow {overflow}) can open "
        total += f"{case.workers * (size + overflow)} connections"
        if overflow < 0 or size == 0:
            total = f"{case.workers} workers can open connections without limit"
        yield Finding(
            "multiplies",
            f"{name} ({engine.dialect.name}) has a pool in each worker: {total}.",
            f"Keep that below max_connections: set pool_size and max_overflow in {where}.",
        )


def _flask_engines(case: Case) -> Mapping[str | None, Any]:
    """Return the engines of Flask-SQLAlchemy by bind key; version 2 does not list them."""
    with case.app.app_context():
        return dict(getattr(case.app.extensions.get("sqlalchemy"), "engines", {}))


def _open(pool: Any) -> int:
    """Return the open connections of a pool; none of a kind that keeps no queue of them."""
    return int(pool.checkedin() + pool.checkedout()) if hasattr(pool, "checkedin") else 0


def _is_guarded(pool: Any) -> bool:
    """Return whether connections are checked when they are taken, as for their process id.

    That is another remedy of SQLAlchemy ("Using Connection Pools with Multiprocessing or
    os.fork()").
    """
    return bool(pool.dispatch.checkout)
