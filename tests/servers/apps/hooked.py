"""An app with a pooled engine and hooks for gunicorn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Pool

from flask_workersize import WorkerSizing
from flask_workersize.runtime.fork import worker_forked

db = SQLAlchemy()
pools: list[Pool] = []
apps: list[Flask] = []


def create_app(**options: Any) -> Flask:
    """Create the app, with a connection of the launcher in its pool."""
    app = Flask("hooked")
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{Path.cwd()}/hooked.sqlite3",
        WORKERSIZE_HOST="127.0.0.1",
        WORKERSIZE_PORT=0,
        WORKERSIZE_GUNICORN_OPTIONS={"post_fork": post_fork, "on_exit": on_exit} | options,
    )
    db.init_app(app)
    WorkerSizing(app)
    with app.app_context():
        db.engine.connect().close()
        pools.append(db.engine.pool)
    apps.append(app)
    app.add_url_rule("/", view_func=lambda: {"pid": os.getpid()})
    worker_forked.connect(forked, app)
    return app


def create_app_with_named_hook() -> Flask:
    """Create the app with a hook in the other form that gunicorn takes, a dotted name."""
    return create_app(post_fork="hooked.post_fork")


def note(who: str) -> None:
    """Write who was called, and whether the pool is still the launcher's."""
    with apps[0].app_context():
        same = db.engine.pool is pools[0]
    with Path("order.txt").open("a") as file:
        file.write(f"{os.getpid()} {who} pool-of-launcher={same}\n")


def forked(app: Flask) -> None:
    """Take part in our signal."""
    note("signal")


def post_fork(server: Any, worker: Any) -> None:
    """Be the hook of a user."""
    note("hook")


def on_exit(server: Any) -> None:
    """Be another hook of a user."""
    Path("exited.txt").write_text(f"{os.getpid()}\n")
