"""flask-workersize's state of one app: settings, resources, plan."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flask import Flask, current_app
from pydantic import SecretStr

from .errors import WorkerSizeConfigError
from .health.endpoint import FILES, METRICS_SUFFIX
from .health.measured import MeasuredReport
from .health.report import CapacityReport
from .log import say
from .resources import Resources
from .resources.backlog import awaited_connections
from .runtime.deployment import Deployment, current
from .runtime.fork import engines_of
from .runtime.history import Past, Sample
from .runtime.scoreboard import Scoreboard
from .sizing.adaptive import AdaptiveBounds, adaptive_bounds, pool_size
from .sizing.plan import SizingPlan, available_for, compute_plan
from .sizing.profile_location import ProfileLocation
from .sizing.settings import DEFAULT_HEALTH_URL, HEALTH_URL_KEY, PLAN_KEY, SizingSettings
from .sizing.sources import ArgsParser, OptionSource

EXTENSION_KEY = "workersize"


@dataclass
class WorkerSizingState:
    """flask-workersize's state of one app, as ``app.extensions["workersize"]``."""

    resources: Resources
    settings: SizingSettings | None = None
    plan: SizingPlan | None = None
    error: WorkerSizeConfigError | None = None
    serving: bool = False
    deployment: Deployment | None = field(default=None, repr=False)
    board: Scoreboard | None = field(default=None, repr=False)
    held_bytes: int = 0
    report_url: str | None = DEFAULT_HEALTH_URL
    gunicorn_args: ArgsParser | None = field(default=None, repr=False)

    def resources_for(self, settings: SizingSettings) -> Resources:
        """Return the resources that a plan is made from."""
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
        """Return the report, with or without live figures."""
        plan = self.get_plan()
        now, measured, past = None, None, Past()
        if live and self.serving and self.deployment and self.board:
            seen = self.board.read(asking)
            # Read last: a connection accepted in between must not count twice.
            connections = awaited_connections(self.board.listeners)
            totals = self.board.queue_times.totals()
            now = replace(seen, connections=connections, queue_totals=totals)
            past = self.board.last_hour.read(Sample.of(seen, totals, time.monotonic_ns()))
            past = past._replace(events=tuple(self.board.events.read()))
            measured = MeasuredReport.of(now.traffic, self.deployment) if now.traffic else None
        return CapacityReport.of(
            plan,
            serving=self.serving,
            detection_notes=self.resources.notes,
            details=details,
            now=now,
            past=past,
            deployment=self.deployment,
            measured=measured,
        )

    def token(self) -> SecretStr | None:
        """Return the token that opens the details of the report."""
        return self.settings.health_token if self.settings else None


def get_state(app: Flask | None = None) -> WorkerSizingState:
    """Return flask-workersize's state of an app."""
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

    :param app: the app; ``current_app`` if left out
    :returns: the plan that serves the app or, if flask-workersize did not launch the
        process, the plan that would
    :raises WorkerSizeConfigError: if the settings are not valid
    :raises RuntimeError: if the app has not been initialised
    """
    return get_state(app).get_plan()


def load_settings(
    app: Flask, options: Mapping[str, Any] | None = None, option_source: OptionSource = "--{option}"
) -> SizingSettings:
    """Return an app's settings, read from every source, without a profile."""
    health_url(app)
    return SizingSettings.load(
        config=app.config,
        options=options,
        option_source=option_source,
        gunicorn_args=get_state(app).gunicorn_args,
    ).for_platform(sys.platform)


def prepare(
    app: Flask, options: Mapping[str, Any] | None = None, option_source: OptionSource = "--{option}"
) -> tuple[SizingSettings, SizingPlan]:
    """Plan for an app from every source of settings, and store the plan."""
    state = get_state(app)
    settings = load_settings(app, options, option_source).with_profile(
        ProfileLocation(app.import_name, app.instance_path)
    )
    plan = compute_plan(settings, state.resources_for(settings))
    state.settings, state.plan, state.error = settings, plan, None
    app.config[PLAN_KEY] = plan
    return settings, plan


def adopt(app: Flask, deployment: Deployment, board: Scoreboard | None) -> None:
    """Make an app report the deployment that serves it, and that deployment's plan.

    The app's other settings stay, and so does an error in them.
    """
    state = get_state(app)
    if state.error is None:
        state.plan = app.config[PLAN_KEY] = deployment.plan
    state.deployment, state.board, state.serving = deployment, board, True


def adopt_current() -> None:
    """Make every app of a worker adopt the current deployment, those that come later included."""
    if current.deployment is not None:
        current.is_serving = True
        for app in list(current.apps):
            adopt(app, current.deployment, current.board)


def compare(app: Flask, launched_plan: SizingPlan) -> None:
    """Warn once if ``app.config`` sets another size than gunicorn was started with."""
    plan = get_state(app).plan
    if plan is None or not current.warns:
        return
    by_config = any(source.startswith("app.config") for source in plan.sources.values())
    asked, holds = (f"{item.workers} × {item.threads}" for item in (plan, launched_plan))
    if by_config and asked != holds:
        say(
            logging.WARNING,
            f"app.config of {app.name!r} asks for {asked} (workers × threads), but {holds} "
            "from the environment wins: set NOW_LMS_ variables, or use flask serve-prod.",
        )


def bounds_of(app: Flask, settings: SizingSettings, plan: SizingPlan) -> AdaptiveBounds | None:
    """Return the bounds within which an app's size follows the load; ``None`` if it does not."""
    if settings.sizing != "adaptive":
        return None
    return adaptive_bounds(settings, plan, smallest_pool(app))


def smallest_pool(app: Flask) -> int | None:
    """Return how many connections the smallest database pool of a worker allows.

    :returns: ``None`` if there is no pool, or no bound
    """
    return pool_size(engines_of(app))


def is_report_path(path: str) -> bool:
    """Return whether a path is that of a report, wherever its app is mounted."""
    urls = [state.report_url for state in map(get_state, list(current.apps)) if state.report_url]
    # WSGI passes the bytes of a path as latin-1.
    known = [url.encode().decode("latin-1") for url in urls]
    suffixes = ("", METRICS_SUFFIX, *(f"/{name}" for name in FILES))
    return path.endswith(tuple(url + suffix for url in known for suffix in suffixes))


def health_url(app: Flask) -> str | None:
    """Return the path of the report; ``None`` for none."""
    url: Any = app.config.get(HEALTH_URL_KEY, DEFAULT_HEALTH_URL)
    if url is None or (isinstance(url, str) and re.fullmatch(r"/[^\s<>]+", url)):
        return url
    raise WorkerSizeConfigError(
        f'app.config {HEALTH_URL_KEY} is not a path: it must start with "/" and contain no '
        "variable. Set it to None for no route."
    )
