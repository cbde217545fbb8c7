"""Run an app under its plan: :func:`serve`."""

from __future__ import annotations

import contextvars
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from ..deployment import Deployment
from ..errors import WorkerSizeStartError
from ..log import say
from ..measure.home import Home
from ..state import adopt, get_state, prepare

if TYPE_CHECKING:
    from flask import Flask

    from ..plan import SizingPlan
    from ..settings import SizingSettings
    from ..values import ServerName
    from .handover import AppLocation

WORKER_CLASSES = {
    "sync": "sync",
    "gthread": "gthread",
    "gunicorn.workers.sync.SyncWorker": "sync",
    "gunicorn.workers.gthread.ThreadWorker": "gthread",
}
"""gunicorn's worker classes that a plan can be made for, by each name they have there."""


def serve(app: Flask, server: ServerName | None = None) -> None:
    """Serve an app in production mode, and return when the server has stopped.

    For a ``run.py`` of one's own; ``flask serve-prod`` does the same. What cannot be done is said
    in one line on standard error.

    :param app: an app with :class:`flask_workersize.WorkerSizing`
    :param server: "gunicorn" or "waitress"; ``NOW_LMS_WSGI_SERVER`` where left out
    :raises SystemExit: 2 where the settings are not valid, 1 where starting failed, and with
        gunicorn also 0 when it has stopped
    :raises RuntimeError: if the app has no ``WorkerSizing``
    """
    ending_in_one_line(
        lambda: launch(app, {"wsgi_server": server}, option_source="serve(server=...)")
    )


def ending_in_one_line(work: Callable[[], None]) -> None:
    """Do what a script asks for, and end it with one line and a status where that fails.

    :raises SystemExit: with the status of the error
    """
    try:
        work()
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None


def launch(
    app: Flask,
    options: Mapping[str, Any],
    option_source: str = "--{option}",
    location: AppLocation | None = None,
) -> None:
    """Plan with the options of a command, say what was chosen, and run the server.

    :param app: an app with :class:`flask_workersize.WorkerSizing`
    :param options: options of the command, by setting; ``None`` is not set
    :param option_source: how such an option is called in messages
    :param location: where a worker finds the app without preload; ``None`` if nowhere
    :raises click.ClickException: with one line, if the settings are not valid or the server
        cannot be started
    """
    if threading.current_thread() is not threading.main_thread():
        raise WorkerSizeStartError(
            "A server obeys signals, which only the main thread receives: call serve() there."
        )
    settings, plan = prepare(app, options, option_source)
    plan = check_options(app, settings, plan)
    state = get_state(app)
    deployment = Deployment(settings, state.resources, plan, Home.of(app), state.held_bytes)
    adopt(app, deployment)
    if app.debug:
        say(logging.WARNING, DEBUG_WARNING)
    if plan.server == "waitress" and options.get("workers") is not None:
        say(logging.WARNING, ONE_PROCESS_WARNING)
    run: Callable[..., None]
    if plan.server == "gunicorn":
        run = partial(load_gunicorn().run, location=location)
    else:
        from .waitress import run
    # The app context that Flask's CLI has pushed must not reach requests: a forked worker would
    # take it for its own, and never tear it down.
    contextvars.Context().run(run, app, deployment)
    state.serving = False


def check_options(app: Flask, settings: SizingSettings, plan: SizingPlan) -> SizingPlan:
    """Check the further options of the server, and return the plan as they leave it.

    :raises WorkerSizeConfigError: if an option is not valid
    """
    if plan.server == "waitress":
        from .waitress_options import waitress_options

        waitress_options(app.config, settings, plan)
        return plan
    options = load_gunicorn().gunicorn_options(app.config, os.environ, settings, plan)
    return replace(plan, worker_class=options["worker_class"])


def load_gunicorn() -> ModuleType:
    """Import what knows gunicorn.

    Its import turns ``WEB_CONCURRENCY`` into a number, and fails where that is empty or "auto".
    """
    value = os.environ.get("WEB_CONCURRENCY")
    is_broken = value is not None and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value)
    if is_broken:
        del os.environ["WEB_CONCURRENCY"]
    try:
        from . import gunicorn
    finally:
        if value is not None:
            os.environ["WEB_CONCURRENCY"] = value
    return gunicorn


ONE_PROCESS_WARNING = (
    "--workers has no effect: waitress serves in one process. Set --threads, or use "
    "--wsgi-server gunicorn."
)

DEBUG_WARNING = (
    "debug mode is on: errors show code and values to every visitor; unset FLASK_DEBUG and leave "
    "out --debug in production."
)
