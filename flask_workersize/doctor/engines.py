"""Engines of SQLAlchemy: connections that are open before the fork, and pools multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .finding import Case, Finding, shown
from .fork_probe import NO_WORKER

_IN_PROCESS = frozenset({"sqlite", "duckdb"})
"""Dialects without a server whose connections would be counted."""


def connected_before_fork(case: Case) -> Iterable[Finding]:
    """Find open connections that all workers would inherit.

    Those of Flask-SQLAlchemy are renewed in each worker by this package, and others by receivers
    of ``worker_forked``, which the trial finds out.
    """
    if not case.preload:
        return
    renewed = {id(engine.pool) for engine in _flask_engines(case).values()}
    connected = {
        i: engine
        for i, engine in enumerate(case.engines)
        if id(engine.pool) not in renewed and _open(engine.pool) and not _is_guarded(engine.pool)
    }
    if connected and case.worker:
        connected = {i: each for i, each in connected.items() if i in case.worker.inherited}
    if connected:
        names = ", ".join(sorted({engine.dialect.name for engine in connected.values()}))
        count = sum(_open(engine.pool) for engine in connected.values())
        them = "it" if count == 1 else "them"
        shares = f"the launcher and all workers share {them}."
        yield Finding(
            "breaks" if case.worker else "unseen",
            f"SQLAlchemy has {count} connection{'' if count == 1 else 's'} ({names}) open after "
            "loading the app, beside those of Flask-SQLAlchemy: "
            f"{shares if case.worker else NO_WORKER}",
            "Call engine.dispose(close=False) in a receiver of the signal worker_forked, or "
            "engine.dispose() at the end of loading.",
        )


def pools_multiplied(case: Case) -> Iterable[Finding]:
    """Find pools of connections to a database server, and how many connections they allow."""
    flask_engines = _flask_engines(case)
    named = {id(engine.pool) for engine in flask_engines.values()}
    for key, engine in flask_engines.items():
        name = "Flask-SQLAlchemy" if key is None else f"Flask-SQLAlchemy, bind {shown([key])}"
        where = "SQLALCHEMY_ENGINE_OPTIONS" if key is None else "SQLALCHEMY_BINDS"
        yield from _multiplied(engine, name, where, case.workers)
    for engine in case.engines:
        if id(engine.pool) not in named:
            yield from _multiplied(engine, "SQLAlchemy", "create_engine()", case.workers)


def _multiplied(engine: Any, name: str, where: str, workers: int) -> Iterable[Finding]:
    if engine.dialect.name in _IN_PROCESS or not hasattr(engine.pool, "checkedin"):
        return
    # There is no public name for the overflow. Below 0 it has no end, as has a size of 0.
    size, overflow = engine.pool.size(), engine.pool._max_overflow
    if overflow < 0 or size == 0:
        total = f"{workers} workers can open connections without an end"
    else:
        total = f"{workers} workers × (pool_size {size} + max_overflow {overflow}) can open "
        total += f"{workers * (size + overflow)} connections"
    yield Finding(
        "multiplies",
        f"{name} ({engine.dialect.name}) has a pool in each worker: {total}.",
        "Keep that below max_connections of the server, with pool_size and max_overflow in "
        f"{where}.",
    )


def _flask_engines(case: Case) -> Mapping[str | None, Any]:
    """Return the engines of Flask-SQLAlchemy by bind key; version 2 does not tell them."""
    database = case.app.extensions.get("sqlalchemy")
    if database is None:
        return {}
    with case.app.app_context():
        return dict(getattr(database, "engines", {}))


def _open(pool: Any) -> int:
    """Return the open connections of a pool; none of a kind that keeps no queue of them."""
    return int(pool.checkedin() + pool.checkedout()) if hasattr(pool, "checkedin") else 0


def _is_guarded(pool: Any) -> bool:
    """Say whether somebody looks at connections when they are taken, as at the process id.

    That is another remedy of SQLAlchemy ("Using Connection Pools with Multiprocessing or
    os.fork()").
    """
    return bool(pool.dispatch.checkout)
