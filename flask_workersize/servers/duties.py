"""What the monitor of a deployment has to do."""

from __future__ import annotations

from collections.abc import Callable

from ..deployment import Deployment
from ..resources import detect_resources
from ..resources.gauge import MemoryGauge
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

_MB = 1024 * 1024


def make_watch(deployment: Deployment, make_hand: MakeHand, master: int) -> Watch:
    """Return what the monitor does again and again.

    :param deployment: what was decided
    :param make_hand: returns what changes the number of workers
    :param master: the process of the master
    """
    board, settings, plan = deployment.board, deployment.settings, deployment.plan
    gauge = MemoryGauge()
    hand = make_hand(board, master)
    duties: list[Duty] = [
        OomWitness(board, plan, gauge.oom_kills),
        LimitFollower(settings, plan, detect_resources, hand),
    ]
    if settings.memory_guard == "off":
        duties.append(MemoryNote(board, gauge))
    else:
        rules = rules_of(settings, gauge.read().limit_bytes)
        duties.append(MemoryDuty(board, plan, rules, hand, gauge))
    return Watch(board, duties)


def rules_of(settings: SizingSettings, limit_bytes: int) -> Rules:
    """Return the rules of the memory guard that follow from the settings.

    :param settings: what the operator asked for
    :param limit_bytes: the limit that a share of it refers to
    """
    bound = settings.worker_memory_max_mb
    bound_bytes: int | None
    if isinstance(bound, str):
        bound_bytes = limit_bytes * int(bound.rstrip("%")) // 100
    else:
        bound_bytes = None if bound is None else bound * _MB
    return Rules(
        recycle_share=settings.memory_recycle_percent / 100,
        critical_share=settings.memory_critical_percent / 100,
        worker_max_bytes=bound_bytes,
        patience_seconds=settings.graceful_timeout + 5,
        exits=settings.memory_guard == "exit",
    )
