"""A small learning management system, to try worker sizing on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flask import Flask

from example_app import lab, pages
from example_app.storage import prepare_database
from flask_workersize import WorkerSizing

__all__ = ["create_app"]


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Create the app, and its database of courses at the first start.

    The database is an SQLite file, ``lms.sqlite3`` in the instance folder. The environment
    variable ``EXAMPLE_DATABASE_URI`` names another one, and
    ``config["SQLALCHEMY_DATABASE_URI"]`` wins over both.

    :param config: values for ``app.config``, which win over the environment.
    :returns: the app, with no database connection left open, so that it may be forked.
    :raises DatabaseUnavailableError: if the database cannot be opened, created or written.
    """
    app = Flask(__name__, instance_relative_config=True)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=os.environ.get("EXAMPLE_DATABASE_URI") or "sqlite:///lms.sqlite3",
        # Seconds that a starting worker waits while another one fills the database.
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 30}},
    )
    app.config.from_mapping(config)

    prepare_database(app)
    pages.init_app(app)
    app.register_blueprint(lab.blueprint)
    WorkerSizing(app)
    return app
