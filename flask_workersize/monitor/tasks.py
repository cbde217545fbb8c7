"""The tasks of a deployment's monitor."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..log import say
from ..resources import detect_resources
from ..resources.gauge import MemoryGauge
from ..resources.processes import held_memory
from ..runtime.deployment import Deployment
from ..runtime.scoreboard import Scoreboard
from ..sizing.plan import MB
from ..sizing.settings import SizingSettings
from .adaptation import AdaptingTask
from .history import HistoryTask
from .learning import LearningTask, ProfileWriter
from .limits import LimitFollower, limits_of
from .loop import MonitorLoop
from .memory import GuardTask
from .observation import Rules
from .oom import OomDetector
from .overload import OverloadTask
from .remedy import Remedy
from .scaling import Scaler
from .throttle import ThrottleDetector

MakeScaler = Callable[[Scoreboard, int], Scaler]
"""Makes a scaler from the scoreboard and the process of the master."""


def make_loop(
    deployment: Deployment, board: Scoreboard, make_scaler: MakeScaler, master: int
) -> MonitorLoop:
    """Return what the monitor does again and again."""
    settings, plan = deployment.settings, deployment.plan
    given = deployment.resources
    if not board.followed_memory:
        board.followed_memory, board.followed_cpus = limits_of(given)
    gauge = MemoryGauge(launcher=master)
    scaler = make_scaler(board, master)
    remedy = Remedy(board, plan, settings.memory_recycle_percent / 100)
    guard = GuardTask(board, remedy, rules_of(settings), scaler, gauge)
    adapting = (
        [AdaptingTask(board, deployment.bounds, rules_of(settings), scaler, gauge.read)]
        if deployment.bounds
        else []
    )
    return MonitorLoop(
        board,
        [
            OomDetector(board, remedy, gauge.oom_kills, lambda: guard.is_short),
            LimitFollower(
                board, settings, plan, lambda: (detect_resources(), held_memory(master)), scaler
            ),
            LearningTask(board, plan, given.cpus, master, _writer(deployment, board)),
            ThrottleDetector(board.events, gauge.throttling),
            OverloadTask(board, settings.queue_seconds, settings.trusted_proxy is not None),
            guard.sampling,
            guard,
            HistoryTask(board),
            *adapting,
        ],
    )


def _writer(deployment: Deployment, board: Scoreboard) -> ProfileWriter | None:
    """Return the writer of the profile, if one is wanted and the app is known."""
    settings, location = deployment.settings, deployment.profile_location
    if settings.sizing_profile != "learn":
        return None
    if location is None:
        why = "gunicorn was started directly, so the app's folder is unknown. Use flask serve-prod"
        say(logging.WARNING, f"NOW_LMS_SIZING_PROFILE=learn writes no profile here: {why}.")
        return None
    threads = deployment.bounds.threads if deployment.bounds else None
    # A number that is set has not been found.
    finds = threads is not None and threads.least < threads.most
    return ProfileWriter(
        location.path,
        location.app,
        deployment.plan.server,
        settings.preload,
        lambda: board.threads if finds else None,
    )


def rules_of(settings: SizingSettings) -> Rules | None:
    """Return the rules of the memory guard that follow from the settings; ``None`` if it is off."""
    if settings.memory_guard == "off":
        return None
    bound = settings.worker_memory_max_mb
    return Rules(
        recycle_share=settings.memory_recycle_percent / 100,
        worker_max_bytes=None if bound is None else bound * MB,
        patience_seconds=settings.graceful_timeout + 5,
        exits=settings.memory_guard == "exit",
    )
