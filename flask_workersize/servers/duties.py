"""What the monitor of a deployment has to do."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..deployment import Deployment
from ..log import say
from ..measure.learn import Learner, ProfileWriter
from ..plan import MB
from ..resources import Resources, detect_resources
from ..resources.gauge import MemoryGauge
from ..resources.processes import held_memory
from ..runtime.follow import LimitFollower
from ..runtime.guard import Rules
from ..runtime.hands import Hand
from ..runtime.memory import MemoryDuty, MemoryNote
from ..runtime.scoreboard import Scoreboard
from ..runtime.watch import Duty, Watch
from ..runtime.witness import OomWitness
from ..settings import SizingSettings

MakeHand = Callable[[Scoreboard, int], Hand]
"""Makes a hand from the scoreboard and the process of the master."""


def make_watch(deployment: Deployment, make_hand: MakeHand, master: int) -> Watch:
    """Return what the monitor does again and again.

    :param deployment: what was decided
    :param make_hand: returns what changes the number of workers
    :param master: the process of the master
    """
    board, settings, plan = deployment.board, deployment.settings, deployment.plan
    given = deployment.resources

    def detect() -> tuple[Resources, int]:
        return detect_resources(), held_memory(master)

    gauge = MemoryGauge()
    hand = make_hand(board, master)
    duties: list[Duty] = [
        OomWitness(board, plan, gauge.oom_kills),
        LimitFollower(settings, plan, detect, hand, (given.memory_limit, given.cpus)),
        Learner(board, plan, given.cpus, master, _writer(deployment)),
    ]
    if settings.memory_guard == "off":
        duties.append(MemoryNote(board, hand, gauge))
    else:
        rules = rules_of(settings)
        duties.append(MemoryDuty(board, plan, rules, hand, gauge))
    return Watch(board, duties)


def _writer(deployment: Deployment) -> ProfileWriter | None:
    """Return what writes the profile, where that is asked for and the app is known."""
    settings, home = deployment.settings, deployment.home
    if settings.sizing_profile != "learn":
        return None
    if home is None:
        say(logging.WARNING, NO_HOME_WARNING)
        return None
    return ProfileWriter(home.path, home.app, deployment.plan.server, settings.preload)


NO_HOME_WARNING = (
    "NOW_LMS_SIZING_PROFILE=learn writes no profile here: a gunicorn that was started directly "
    "does not know the app's instance folder. Start it with flask serve-prod."
)


def rules_of(settings: SizingSettings) -> Rules:
    """Return the rules of the memory guard that follow from the settings.

    :param settings: what the operator asked for
    """
    bound = settings.worker_memory_max_mb
    share = int(bound.rstrip("%")) / 100 if isinstance(bound, str) else None
    bound_bytes = bound * MB if isinstance(bound, int) else None
    return Rules(
        recycle_share=settings.memory_recycle_percent / 100,
        critical_share=settings.memory_critical_percent / 100,
        worker_max_bytes=bound_bytes,
        worker_max_share=share,
        patience_seconds=settings.graceful_timeout + 5,
        exits=settings.memory_guard == "exit",
    )
