"""An app with a real SQLite and a pool whose connections say where they were made and closed."""

from __future__ import annotations

import atexit
import gc
import os
import sqlite3
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from flask_workersize import WorkerSizing
from flask_workersize.runtime.fork import worker_forked

db = SQLAlchemy()
apps: list[Flask] = []


def note(file: str, *words: object) -> None:
    """Add a line to a file, whose first word is the process that does it."""
    with Path(file).open("a") as opened:
        opened.write(" ".join(map(str, (os.getpid(), *words))) + "\n")


class Tracked(sqlite3.Connection):
    """A connection that says goodbye when it is closed or collected, as some drivers do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.made_in = os.getpid()
        super().__init__(*args, **kwargs)

    def close(self) -> None:
        note("goodbyes.txt", self.made_in)
        super().close()

    def __del__(self) -> None:
        note("goodbyes.txt", self.made_in)


def made_in() -> int:
    """Return the process that made the connection which the session has."""
    connection: Any = db.session.connection().connection.dbapi_connection
    return int(connection.made_in)


def create_app() -> Flask:
    """Create the app; the launcher uses the database, so its pool holds a connection."""
    app = Flask("pooled")
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{Path.cwd()}/pooled.sqlite3",
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"factory": Tracked, "timeout": 20}},
        WORKERSIZE_HOST="127.0.0.1",
        WORKERSIZE_PORT=0,
        WORKERSIZE_GUNICORN_OPTIONS={"on_exit": on_exit},
    )
    db.init_app(app)
    WorkerSizing(app)
    apps.append(app)
    atexit.register(note, "exits.txt")
    worker_forked.connect(forked)
    with app.app_context():
        db.session.execute(text("CREATE TABLE IF NOT EXISTS mark (pid INTEGER)"))
        db.session.commit()
        note("launcher.txt", made_in())

    @app.get("/")
    def index() -> dict[str, int]:
        gc.collect()
        return {"pid": os.getpid(), "made_in": made_in()}

    @app.post("/mark")
    def mark() -> dict[str, int]:
        db.session.execute(text("INSERT INTO mark VALUES (:pid)"), {"pid": os.getpid()})
        db.session.commit()
        return {"pid": os.getpid(), "made_in": made_in()}

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        note("teardowns.txt")

    return app


def forked(sender: Flask) -> None:
    """Take part in the documented signal."""
    note("signals.txt", sender is apps[0])


def on_exit(server: Any) -> None:
    """Use the launcher's own connection once more, after all workers have gone."""
    with apps[0].app_context():
        count = db.session.execute(text("SELECT count(*) FROM mark")).scalar()
        note("launcher.txt", made_in(), count)
