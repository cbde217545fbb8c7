"""Two apps with a pool each in one process, one mounted in the other."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_workersize import WorkerSizing
from flask_workersize.runtime.fork import worker_forked

forked: list[str] = []


class Tracked(sqlite3.Connection):
    """A connection that knows the process that made it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.made_in = os.getpid()
        super().__init__(*args, **kwargs)


def create(name: str) -> Flask:
    """Create one of the apps; the launcher uses the database, so its pool holds a connection."""
    app = Flask(name)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{Path.cwd()}/{name}.sqlite3",
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"factory": Tracked}},
        WORKERSIZE_HOST="127.0.0.1",
        WORKERSIZE_PORT=0,
    )
    db = SQLAlchemy(app)
    WorkerSizing(app)
    with app.app_context():
        db.engine.connect().close()
        pool_of_launcher = db.engine.pool

    @app.get("/")
    def index() -> dict[str, object]:
        with db.engine.connect() as connection:
            tracked: Any = connection.connection.dbapi_connection
            return {
                "name": name,
                "pid": os.getpid(),
                "made_in": tracked.made_in,
                "pool_of_launcher": db.engine.pool is pool_of_launcher,
                "forked": forked,
            }

    return app


@worker_forked.connect
def note(sender: Flask) -> None:
    """Take part in the documented signal."""
    forked.append(sender.name)


app = create("outer")
inner = create("inner")
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/inner": inner})  # type: ignore[method-assign]
