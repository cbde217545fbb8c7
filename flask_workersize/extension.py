"""WorkerSizing: wires settings, resources, plan, report and command into one Flask app."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app

from .cli import serve_prod, workersize
from .deployment import ENVIRON_KEY, Deployment, process
from .errors import WorkerSizeConfigError
from .health.blueprint import CapacityEndpoint, CapacityShortcut, capacity_blueprint
from .health.report import CapacityReport
from .plan import SizingPlan, compute_plan
from .resources import Resources, detect_resources
from .servers import say
from .settings import DEFAULT_HEALTH_URL, HEALTH_URL_KEY, PLAN_KEY, SizingSettings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from pydantic import SecretStr

EXTENSION_KEY = "workersize"


@dataclass
class WorkerSizingState:
    """What flask-workersize knows of one app, as ``app.extensions["workersize"]``.

    :param resources: what the machine gave when it was looked at
    :param settings: what the operator asked for; ``None`` where that is not valid
    :param plan: what follows; ``None`` where the settings are not valid
    :param error: what is not valid about the settings
    :param serving: whether the app is served under the plan
    """

    resources: Resources
    settings: SizingSettings | None = None
    plan: SizingPlan | None = None
    error: WorkerSizeConfigError | None = None
    serving: bool = False
    deployment: Deployment | None = field(default=None, repr=False)

    def get_plan(self) -> SizingPlan:
        """Return the plan.

        :raises WorkerSizeConfigError: if the settings are not valid
        """
        if self.plan is None:
            error = self.error or WorkerSizeConfigError("There is no plan.")
            # One error is raised for every request: each would add to its traceback.
            raise error.with_traceback(None)
        return self.plan

    def report(self, details: bool = False) -> CapacityReport:
        """Return what the outside is told.

        :param details: whether to tell what only the token opens
        :raises WorkerSizeConfigError: if the settings are not valid
        """
        return CapacityReport.of(
            self.get_plan(),
            serving=self.serving,
            detection_notes=self.resources.notes,
            details=details,
        )

    def token(self) -> SecretStr | None:
        """Return the token that opens the details of the report."""
        return self.settings.health_token if self.settings else None


class WorkerSizing:
    """Gives a Flask app its size, the command ``flask serve-prod`` and ``/_health/capacity``.

    :param app: the app, or ``None`` to call :meth:`init_app` later
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the settings, look at the machine and plan, once for this app.

        Call it after ``app.config`` is filled: ``WORKERSIZE_<SETTING>`` for each setting,
        ``WORKERSIZE_HEALTH_URL`` (``None`` leaves the route out), ``WORKERSIZE_GUNICORN_OPTIONS``
        and ``WORKERSIZE_WAITRESS_OPTIONS`` are read now, and later changes of them are not seen,
        save by ``serve`` and ``flask serve-prod``, which read the settings once more. The plan is
        stored as ``app.config["WORKERSIZE_PLAN"]``, the state as
        ``app.extensions["workersize"]``.

        Settings that are not valid raise nothing here, so that other commands go on working:
        :func:`get_plan`, ``flask serve-prod`` and the route report them.

        :param app: the app
        :raises RuntimeError: if the app has been initialised before
        """
        if EXTENSION_KEY in app.extensions:
            raise RuntimeError(
                "A 'WorkerSizing' instance has already been registered on this Flask app: perhaps "
                "both WorkerSizing(app) and init_app(app) are called. Remove one of them."
            )
        deployment = process.deployment
        resources = deployment.resources if deployment else detect_resources()
        state = app.extensions[EXTENSION_KEY] = WorkerSizingState(resources)
        process.apps.add(app)
        try:
            if deployment is None:
                prepare(app)
            else:
                prepare(app, {"wsgi_server": deployment.plan.server})
                if process.settled:
                    compare(app, deployment.plan)
        except WorkerSizeConfigError as error:
            state.error = error
        app.cli.add_command(serve_prod)
        app.cli.add_command(workersize)
        _install_report(app, state)


def get_state(app: Flask | None = None) -> WorkerSizingState:
    """Return what flask-workersize knows of an app.

    :param app: the app; ``current_app`` where left out
    :raises RuntimeError: if the app has not been initialised
    """
    app = current_app if app is None else app
    state: WorkerSizingState | None = app.extensions.get(EXTENSION_KEY)
    if state is None:
        raise RuntimeError(
            "This Flask app is not registered with 'WorkerSizing': perhaps 'init_app' was not "
            "called, or for another app. Call 'WorkerSizing(app)' where the app is created."
        )
    return state


def get_plan(app: Flask | None = None) -> SizingPlan:
    """Return the plan of an app.

    :param app: the app; ``current_app`` where left out
    :returns: the plan that it is served under, or, where flask-workersize did not launch the
        process, the plan that it would be served under
    :raises WorkerSizeConfigError: if the settings are not valid
    :raises RuntimeError: if the app has not been initialised
    """
    return get_state(app).get_plan()


def prepare(
    app: Flask, options: Mapping[str, Any] | None = None, option_source: str = "--{option}"
) -> tuple[SizingSettings, SizingPlan]:
    """Plan for an app from every layer of settings, and store the plan.

    :param app: an app that was initialised
    :param options: options of the command, by setting
    :param option_source: how such an option is called in messages
    :raises WorkerSizeConfigError: if the settings are not valid
    """
    state = get_state(app)
    settings = SizingSettings.load(
        config=app.config, options=options, option_source=option_source
    ).for_platform(sys.platform)
    _health_url(app)
    plan = compute_plan(settings, state.resources)
    state.settings, state.plan, state.error = settings, plan, None
    app.config[PLAN_KEY] = plan
    return settings, plan


def adopt(app: Flask, deployment: Deployment) -> None:
    """Let an app know the deployment that serves it: its plan is the one that holds.

    All else that the app's own settings say stays, and so does an error in them.

    :param app: an app that was initialised
    :param deployment: what its launcher decided
    """
    state = get_state(app)
    if state.error is None:
        state.plan = app.config[PLAN_KEY] = deployment.plan
    state.deployment, state.serving = deployment, True


def compare(app: Flask, launched_plan: SizingPlan) -> None:
    """Say once that ``app.config`` asks for another size than gunicorn was started with.

    :param app: an app that was initialised
    :param launched_plan: the plan that holds
    """
    plan = get_state(app).plan
    if plan is None:
        return
    by_config = any(source.startswith("app.config") for source in plan.sources.values())
    same = (plan.workers, plan.threads) == (launched_plan.workers, launched_plan.threads)
    if same or not by_config or not process.speaks:
        return
    say(
        logging.WARNING,
        f"app.config of {app.name!r} asks for {plan.workers} × {plan.threads} (workers × threads); "
        f"gunicorn was started from the environment with {launched_plan.workers} × "
        f"{launched_plan.threads}, which holds: set NOW_LMS_ variables, or use flask serve-prod.",
    )


def _health_url(app: Flask) -> str | None:
    url: Any = app.config.get(HEALTH_URL_KEY, DEFAULT_HEALTH_URL)
    if url is None or (isinstance(url, str) and re.fullmatch(r"/[^\s<>]+", url)):
        return url
    raise WorkerSizeConfigError(
        f'app.config {HEALTH_URL_KEY} is not a path: it has to start with "/" and to hold no '
        f'variable, for example "{DEFAULT_HEALTH_URL}", or to be None to leave the route out.'
    )


def _install_report(app: Flask, state: WorkerSizingState) -> None:
    endpoint = CapacityEndpoint(state.report, state.token)
    try:
        url = _health_url(app)
    except WorkerSizeConfigError:
        url = DEFAULT_HEALTH_URL
    if url is not None:
        app.register_blueprint(capacity_blueprint(endpoint, url))
        app.wsgi_app = CapacityShortcut(app.wsgi_app, endpoint, url)  # type: ignore[method-assign]
    app.wsgi_app = _Adopter(app, app.wsgi_app)  # type: ignore[method-assign]


class _Adopter:
    """WSGI middleware through which an app learns the deployment that serves it.

    A launcher that knows only the environment may plan otherwise than the app's config says.
    """

    def __init__(self, app: Flask, wsgi_app: WSGIApplication) -> None:
        self._flask = app
        self._state = get_state(app)
        self.app = wsgi_app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        deployment: Deployment | None = environ.get(ENVIRON_KEY)
        if deployment is not None and deployment is not self._state.deployment:
            adopt(self._flask, deployment)
        return self.app(environ, start_response)
