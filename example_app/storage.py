"""Create the database and fill it, once, however many processes start at the same moment."""

from __future__ import annotations

import tomllib
from pathlib import Path

from click import ClickException
from flask import Flask
from sqlalchemy import Connection, Engine, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from example_app.models import Base, Course, Lesson, db

REMEDY = (
    "Make the folder writable, or set EXAMPLE_DATABASE_URI to an SQLite file that can be"
    " written, such as sqlite:////tmp/lms.sqlite3."
)


class DatabaseUnavailableError(ClickException):
    """The database cannot be opened, created or written.

    Flask's command line shows a ``ClickException`` as one line.
    """


def prepare_database(app: Flask) -> None:
    """Bind the database to the app; create and fill it where that is not done yet.

    :param app: the app, with ``SQLALCHEMY_DATABASE_URI`` naming an SQLite file.
    :raises DatabaseUnavailableError: if the database cannot be opened, created or written.
    """
    _require_sqlite_file(app.config["SQLALCHEMY_DATABASE_URI"])
    try:
        db.init_app(app)
    except OSError as error:
        raise DatabaseUnavailableError(
            f'cannot create the folder "{error.filename}" of the course database:'
            f" {error.strerror}. {REMEDY}"
        ) from error
    with app.app_context():
        _create_and_fill(db.engine, app)


def _require_sqlite_file(uri: str) -> None:
    try:
        url = make_url(uri)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        raise DatabaseUnavailableError(
            "the course database must be an SQLite file, because several processes share it;"
            " EXAMPLE_DATABASE_URI or SQLALCHEMY_DATABASE_URI names something else."
            " Set it to a value such as sqlite:////tmp/lms.sqlite3."
        )


def _create_and_fill(engine: Engine, app: Flask) -> None:
    try:
        # The driver's own transactions take the write lock too late: at the first INSERT.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            Base.metadata.create_all(connection)
            if connection.scalar(select(Course.id).limit(1)) is None:
                _add_courses(connection, app)
            connection.exec_driver_sql("COMMIT")
    except DBAPIError as error:
        raise DatabaseUnavailableError(
            f'cannot prepare the course database "{engine.url.database}": {error.orig}. {REMEDY}'
        ) from error
    finally:
        # An SQLite connection must not be carried across a fork.
        engine.dispose()


def _add_courses(connection: Connection, app: Flask) -> None:
    text = Path(app.root_path, "courses.toml").read_text(encoding="utf-8")
    courses = tomllib.loads(text)["courses"]
    with Session(connection) as session:
        for course in courses:
            lessons = [
                Lesson(position=position, **lesson)
                for position, lesson in enumerate(course.pop("lessons"), start=1)
            ]
            session.add(Course(lessons=lessons, **course))
        session.flush()
