"""What a launcher decided, handed on to the processes that it starts.

``serve`` hands its plan to the app itself. A gunicorn that was started with
:mod:`flask_workersize.gunicorn_conf` does not know the app when it plans: the decision waits here,
in an imported module, which a reload of the configuration leaves alone, and reaches the app that
is really served with its requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakSet

from ..log import say
from ..resources import Resources
from ..sizing.plan import SizingPlan
from ..sizing.profile_location import ProfileLocation
from ..sizing.settings import SizingSettings
from .scoreboard import Scoreboard

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask


ENVIRON_KEY = "flask_workersize.runtime.deployment"


@dataclass(frozen=True)
class Deployment:
    """One decision: what was asked for, what was found, what follows, and where it is watched.

    ``resources`` are what the machine gave when it was looked at, and ``held_bytes`` what the
    launcher held then. ``home`` says whose profile it is; ``None`` where the app is not known.
    """

    settings: SizingSettings
    resources: Resources
    plan: SizingPlan
    profile_location: ProfileLocation | None = None
    held_bytes: int = 0
    board: Scoreboard = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "board", Scoreboard(self.plan.workers, self.plan.threads))

    def announce(self) -> None:
        """Log in one line what was chosen and why, and each warning of the plan in one more."""
        say(logging.INFO, str(self.plan))
        for warning in self.plan.warnings:
            say(logging.WARNING, warning)


class Process:
    """What this process was told by the one that forked it.

    ``deployment`` is the decision it was started under, ``None`` where nobody took one;
    ``settled`` whether that decision has followed gunicorn's command line;
    ``speaks`` whether it tells what every process of the deployment could tell; ``apps`` the apps
    it has, for what is to be done to each after a fork.
    """

    def __init__(self) -> None:
        self.deployment: Deployment | None = None
        self.is_final = False
        self.warns = True
        self.apps: WeakSet[Flask] = WeakSet()


process = Process()


class Deployed:
    """WSGI middleware that tells each request which deployment serves it.

    So the app learns it whatever stands between gunicorn and Flask.
    """

    def __init__(self, app: WSGIApplication, deployment: Deployment) -> None:
        self.app = app
        self.deployment = deployment

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        environ[ENVIRON_KEY] = self.deployment
        return self.app(environ, start_response)
