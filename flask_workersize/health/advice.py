"""What to do about what the report shows, in plain words; pure."""

from __future__ import annotations

from ..runtime.deployment import Deployment
from ..runtime.history import Past
from ..runtime.snapshot import Snapshot


def next_steps(deployment: Deployment, now: Snapshot, past: Past) -> list[str]:
    """Return what to do, the most urgent first; nothing if there is nothing to do.

    :param deployment: what was decided at the start
    :param now: what happens now
    :param past: what has happened lately
    :returns: sentences for a person
    """
    return []
