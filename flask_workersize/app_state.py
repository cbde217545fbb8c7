"""What flask-workersize knows of one app: settings, resources, plan."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app

from .errors import WorkerSizeConfigError
from .health.learnt import MeasuredReport
from .health.report import CapacityReport, Live
from .log import say
from .resources import Resources
from .resources.backlog import queued_connections
from .runtime.deployment import Deployment, process
from .sizing.plan import SizingPlan, available_for, compute_plan
from .sizing.profile_location import ProfileLocation
from .sizing.settings import DEFAULT_HEALTH_URL, HEALTH_URL_KEY, PLAN_KEY, SizingSettings
from .sizing.sources import ArgsParser

if TYPE_CHECKING:
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
    :param held_bytes: memory that this process held when the machine was looked at
    :param gunicorn_args: parses ``GUNICORN_CMD_ARGS``
    """

    resources: Resources
    settings: SizingSettings | None = None
    plan: SizingPlan | None = None
    error: WorkerSizeConfigError | None = None
    serving: bool = False
    deployment: Deployment | None = field(default=None, repr=False)
    held_bytes: int = 0
    gunicorn_args: ArgsParser | None = field(default=None, repr=False)

    def resources_for(self, settings: SizingSettings) -> Resources:
        """Return the resources that a plan is made from.

        :param settings: what the operator asked for
        """
        return available_for(settings, self.resources, self.held_bytes)

    def get_plan(self) -> SizingPlan:
        """Return the plan.

        :raises WorkerSizeConfigError: if the settings are not valid
        """
        if self.plan is None:
            error = self.error or WorkerSizeConfigError("There is no plan.")
            # One error is raised for every request: each would add to its traceback.
            raise error.with_traceback(None)
        return self.plan

    def report(
        self, details: bool = False, live: bool = False, asking: int | None = None
    ) -> CapacityReport:
        """Return what the outside is told.

        :param details: whether to tell what only the token opens
        :param live: whether to tell what is happening now, where the app is served
        :param asking: the slot of the request that asks, which does not count as busy
        :raises WorkerSizeConfigError: if the settings are not valid
        """
        deployment = self.deployment if live and self.serving else None
        return CapacityReport.of(
            self.get_plan(),
            serving=self.serving,
            detection_notes=self.resources.notes,
            details=details,
            live=_look(deployment, asking) if deployment else None,
        )

    def token(self) -> SecretStr | None:
        """Return the token that opens the details of the report."""
        return self.settings.health_token if self.settings else None


def report_of(
    deployment: Deployment, details: bool, live: bool, asking: int | None
) -> CapacityReport:
    """Return what the outside is told of a deployment, where no app is at hand.

    :param deployment: what was decided
    :param details: whether to tell what only the token opens
    :param live: whether to tell what is happening now
    :param asking: the slot of the request that asks
    """
    return CapacityReport.of(
        deployment.plan,
        serving=True,
        detection_notes=deployment.resources.notes,
        details=details,
        live=_look(deployment, asking) if live else None,
    )


def _look(deployment: Deployment, asking: int | None) -> Live:
    board = deployment.board
    snapshot = board.read(asking)
    learnt = None
    if snapshot.learnt is not None:
        learnt = MeasuredReport.of(
            snapshot.learnt,
            deployment.settings,
            deployment.resources,
            deployment.plan,
            deployment.held_bytes,
        )
    return Live(snapshot, queued_connections(board.listeners), learnt)


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


def load_settings(
    app: Flask, options: Mapping[str, Any] | None = None, option_source: str = "--{option}"
) -> SizingSettings:
    """Return what is asked for an app, read from every source, without a profile."""
    health_url(app)
    settings = SizingSettings.load(
        config=app.config,
        options=options,
        option_source=option_source,
        gunicorn_args=get_state(app).gunicorn_args,
    )
    return settings.for_platform(sys.platform)


def prepare(
    app: Flask, options: Mapping[str, Any] | None = None, option_source: str = "--{option}"
) -> tuple[SizingSettings, SizingPlan]:
    """Plan for an app from every source of settings, and store the plan."""
    state = get_state(app)
    settings = load_settings(app, options, option_source).with_profile(ProfileLocation.of(app))
    plan = compute_plan(settings, state.resources_for(settings))
    state.settings, state.plan, state.error = settings, plan, None
    app.config[PLAN_KEY] = plan
    return settings, plan


def adopt(app: Flask, deployment: Deployment) -> None:
    """Let an app know the deployment that serves it: its plan is the one that holds.

    Everything else that the app's own settings say stays, and so does an error in them.
    """
    state = get_state(app)
    if state.error is None:
        state.plan = app.config[PLAN_KEY] = deployment.plan
    state.deployment, state.serving = deployment, True


def compare(app: Flask, launched_plan: SizingPlan) -> None:
    """Warn once that ``app.config`` asks for another size than gunicorn was started with."""
    plan = get_state(app).plan
    if plan is None:
        return
    by_config = any(source.startswith("app.config") for source in plan.sources.values())
    same = (plan.workers, plan.threads) == (launched_plan.workers, launched_plan.threads)
    if same or not by_config or not process.warns:
        return
    say(
        logging.WARNING,
        f"app.config of {app.name!r} asks for {plan.workers} × {plan.threads} (workers × threads); "
        f"gunicorn was started from the environment with {launched_plan.workers} × "
        f"{launched_plan.threads}, which holds: set NOW_LMS_ variables, or use flask serve-prod.",
    )


def health_url(app: Flask) -> str | None:
    """Return the path of the report; ``None`` for none."""
    url: Any = app.config.get(HEALTH_URL_KEY, DEFAULT_HEALTH_URL)
    if url is None or (isinstance(url, str) and re.fullmatch(r"/[^\s<>]+", url)):
        return url
    raise WorkerSizeConfigError(
        f'app.config {HEALTH_URL_KEY} is not a path: it has to start with "/" and must not hold a '
        f'variable, as in "{DEFAULT_HEALTH_URL}". None leaves the route out.'
    )
