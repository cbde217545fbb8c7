"""The decisions of a launcher, and what this process knows of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from weakref import WeakSet

from flask import Flask

from ..log import logger, say
from ..resources import Resources
from ..sizing.adaptive import AdaptiveBounds, begins
from ..sizing.plan import SizingPlan
from ..sizing.profile_location import ProfileLocation
from ..sizing.settings import SizingSettings
from .scoreboard import Scoreboard


@dataclass(frozen=True)
class Deployment:
    """One decision: the settings, the detected resources, and the plan.

    ``resources`` are those detected at the start, ``held_bytes`` what the launcher held then.
    ``profile_location`` is ``None`` if the app is not known, ``bounds`` if the size does
    not follow the load.
    """

    settings: SizingSettings
    resources: Resources
    plan: SizingPlan
    profile_location: ProfileLocation | None = None
    held_bytes: int = 0
    bounds: AdaptiveBounds | None = None

    def make_scoreboard(self) -> Scoreboard:
        """Return a table with room for all that may run at once. Make it before the first fork."""
        if self.bounds is None:
            return Scoreboard(self.plan.workers, self.plan.threads)
        most_workers, most_threads = self.bounds.workers.most, self.bounds.threads.most
        threads = self.bounds.first_threads or self.plan.threads
        return Scoreboard(self.plan.workers, threads, most_workers, most_threads)

    def announce(self, via: logging.Logger = logger) -> None:
        """Log in one line what was chosen and why, and each warning of the plan in one more."""
        say(logging.INFO, begins(self.plan, self.bounds), via)
        for warning in self.plan.warnings:
            say(logging.WARNING, warning, via)


class CurrentDeployment:
    """What this process knows of the deployment that it belongs to.

    A gunicorn that was started directly plans before it knows the app, and a reload executes its
    configuration again: what has to last is kept here.
    """

    def __init__(self) -> None:
        self.deployment: Deployment | None = None
        self.board: Scoreboard | None = None
        self.is_final = False
        """Whether the decision has followed gunicorn's command line."""
        self.is_serving = False
        """Whether this is a worker whose apps are served under it."""
        self.warns = True
        """Whether this process logs what every process of the deployment could log."""
        self.apps: WeakSet[Flask] = WeakSet()


current = CurrentDeployment()
