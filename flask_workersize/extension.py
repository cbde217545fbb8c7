"""WorkerSizing: wires settings, resources, plan, report and command into one Flask app."""

from __future__ import annotations

import os

from flask import Flask

from .app_state import (
    EXTENSION_KEY,
    WorkerSizingState,
    adopt,
    compare,
    health_url,
    prepare,
)
from .cli import serve_prod, workersize
from .errors import WorkerSizeConfigError
from .health.blueprint import CapacityShortcut, capacity_blueprint
from .health.endpoint import CapacityEndpoint
from .resources import detect_resources
from .resources.processes import held_memory
from .runtime.deployment import current
from .servers.launch import gunicorn_args
from .sizing.settings import DEFAULT_HEALTH_URL


class WorkerSizing:
    """Sizes a Flask app, and adds ``flask serve-prod`` and ``/_health/capacity``.

    :param app: the app, or ``None`` to call :meth:`init_app` later
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the settings, detect CPUs and memory, and plan, once for this app.

        Call it after ``app.config`` is filled: ``WORKERSIZE_<SETTING>`` for each setting,
        ``WORKERSIZE_HEALTH_URL`` (``None`` for no route), ``WORKERSIZE_GUNICORN_OPTIONS``
        and ``WORKERSIZE_WAITRESS_OPTIONS`` are read now. Later changes have no effect, except on
        ``serve`` and ``flask serve-prod``, which read the settings again. The plan is
        stored as ``app.config["WORKERSIZE_PLAN"]``, the state as
        ``app.extensions["workersize"]``.

        Invalid settings raise nothing here, so that other commands still work:
        :func:`get_plan`, ``flask serve-prod`` and the route report them.

        :param app: the app
        :raises TypeError: if it is not a Flask app
        :raises RuntimeError: if the app has been initialised before
        """
        # isinstance() would believe current_app, which cannot be kept.
        if not issubclass(type(app), Flask):
            raise TypeError(
                f"WorkerSizing needs a Flask app, not {type(app).__name__!r}: pass the object that "
                "Flask(...) or your create_app() returns."
            )
        if EXTENSION_KEY in app.extensions:
            raise RuntimeError(
                "A 'WorkerSizing' instance has already been registered on this Flask app: perhaps "
                "both WorkerSizing(app) and init_app(app) are called. Remove one of them."
            )
        deployment = current.deployment
        app.extensions[EXTENSION_KEY] = state = WorkerSizingState(
            deployment.resources if deployment else detect_resources(),
            held_bytes=deployment.held_bytes if deployment else held_memory(os.getpid()),
            gunicorn_args=gunicorn_args,
        )
        current.apps.add(app)
        url: str | None = DEFAULT_HEALTH_URL
        try:
            url = health_url(app)
            prepare(app, {"wsgi_server": deployment.plan.server} if deployment else None)
            if deployment and current.is_final:
                compare(app, deployment.plan)
        except WorkerSizeConfigError as error:
            state.error = error
        state.report_url = url
        if deployment and current.is_serving:
            adopt(app, deployment, current.board)
        app.cli.add_command(serve_prod)
        app.cli.add_command(workersize)
        if url is not None:
            endpoint = CapacityEndpoint(state.report, state.token)
            app.register_blueprint(capacity_blueprint(endpoint, url))
            shortcut = CapacityShortcut(app.wsgi_app, endpoint, url)
            app.wsgi_app = shortcut  # type: ignore[method-assign]
