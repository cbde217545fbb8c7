"""Run an app under its plan: :func:`serve`."""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flask import Flask

from ..app_state import adopt, bounds_of, get_state, prepare
from ..errors import WorkerSizeStartError, one_line_errors
from ..log import say
from ..runtime.deployment import Deployment
from ..sizing.plan import SizingPlan
from ..sizing.profile_location import ProfileLocation
from ..sizing.settings import SizingSettings
from ..sizing.sources import OptionSource
from ..sizing.validators import ServerName
from .app_import import AppImport
from .ending import process_end
from .proxy import ignored_by_waitress, trusting

_DEBUG = "debug mode is on: errors show code and values to visitors. Unset FLASK_DEBUG and --debug."
_ONE_PROCESS = "has no effect: waitress has one process. Set --threads, or use gunicorn."


def serve(app: Flask, server: ServerName | None = None) -> None:
    """Serve an app in production mode; return when the server has stopped.

    The code that follows may take as long as it needs. After it, non-daemon threads of the app
    get what is left of ``NOW_LMS_GRACEFUL_TIMEOUT``.

    For a ``run.py`` of your own; ``flask serve-prod`` does the same. An error is one line on
    standard error.

    :param app: an app with :class:`flask_workersize.WorkerSizing`
    :param server: "gunicorn" or "waitress"; ``NOW_LMS_WSGI_SERVER`` if left out
    :raises SystemExit: 2 if the settings are not valid, 1 if starting failed, or the exit status
        of the server if that is not 0
    :raises RuntimeError: if the app has no ``WorkerSizing``
    """
    with one_line_errors():
        launch(app, {"wsgi_server": server}, option_source="serve(server=...)")


def launch(
    app: Flask,
    options: Mapping[str, Any],
    option_source: OptionSource = "--{option}",
    app_import: AppImport | None = None,
) -> None:
    """Plan with the options of a command, log what was chosen, and run the server."""
    if threading.current_thread() is not threading.main_thread():
        raise WorkerSizeStartError("Call serve() from the main thread; it handles signals.")
    settings, plan = prepare(app, options, option_source)
    plan, server_options = check_options(app, settings, plan)
    state = get_state(app)
    location = ProfileLocation(app.import_name, app.instance_path)
    bounds = bounds_of(app, settings, plan)
    deployment = Deployment(settings, state.resources, plan, location, state.held_bytes, bounds)
    if app.debug:
        say(logging.WARNING, _DEBUG)
    if plan.server == "waitress" and options.get("workers") is not None:
        say(logging.WARNING, f"{settings.source_of('workers')} {_ONE_PROCESS}")
    if plan.server == "waitress":
        ignored = ignored_by_waitress(app, settings, server_options, os.environ)
        if ignored:
            say(logging.WARNING, ignored)
    # The app context that Flask's CLI has pushed must not reach requests: a forked worker would
    # take it for its own, and never tear it down.
    with process_end.bounded():
        contextvars.Context().run(_run, app, deployment, server_options, app_import)
    state.serving = False


def _run(
    app: Flask, deployment: Deployment, options: dict[str, Any], app_import: AppImport | None
) -> None:
    plan = deployment.plan
    if plan.server == "gunicorn" and not deployment.settings.preload:
        from .gunicorn.reexec import reexec

        reexec(app_import, deployment, options)
    board = deployment.make_scoreboard()
    adopt(app, deployment, board)
    if plan.server == "waitress":
        from .waitress.run import run
    else:
        from .gunicorn.run import run
    run(lambda: trusting(app, deployment.settings), deployment, board, options)


def gunicorn_args(text: str) -> Mapping[str, Any]:
    """Parse ``GUNICORN_CMD_ARGS``; gunicorn is imported only now."""
    if sys.platform == "win32":
        # gunicorn cannot be imported there, and waitress will serve.
        return {}
    from .gunicorn.options import parse_command_args

    return parse_command_args(text)


def check_options(
    app: Flask, settings: SizingSettings, plan: SizingPlan
) -> tuple[SizingPlan, dict[str, Any]]:
    """Check the further options of the server; return the plan as they leave it, and them all."""
    if plan.server == "waitress":
        from .waitress.options import waitress_options

        return plan, waitress_options(app.config, settings, plan)
    from .gunicorn.options import gunicorn_options

    options = gunicorn_options(app.config, settings, plan)
    return replace(plan, worker_class=options["worker_class"]), options
