"""The doctor's findings, one per line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..doctor import Finding
from ..errors import printable
from ..sizing.plan import SizingPlan, counted

_LABELS = {"breaks": "Breaks", "multiplies": "Multiplies", "unseen": "Note"}

_CHECKED = (
    "rate limits and caches in memory, schedulers, threads and connections before the fork, pools "
    "of connections, Flask-SocketIO"
)
_NOT_CHECKED = "Not checked: what the app keeps in variables of its own."


def diagnosis(
    findings: Sequence[Finding], plan: SizingPlan, gunicorn_plan: SizingPlan, key_seen: bool
) -> str:
    """Return the findings, their summary, and how many workers are planned.

    ``key_seen``: whether ``SECRET_KEY`` was compared with that of a second load.
    """
    lines = [printable(f"{_LABELS[finding.level]}: {finding}") for finding in findings]
    planned = f"gunicorn with {counted(plan.workers, 'worker')}"
    if plan.server == "waitress":
        workers = counted(gunicorn_plan.workers, "worker")
        planned = f"waitress, which is one process; gunicorn would have {workers}"
    return "\n".join([*lines, f"{_summary(findings, key_seen)} Planned: {planned}."])


def _summary(findings: Sequence[Finding], key_seen: bool) -> str:
    counts = Counter(finding.level for finding in findings)
    breaks, multiplies = counts["breaks"], counts["multiplies"]
    if breaks or multiplies:
        return (
            f"With more than one worker {breaks or 'nothing'} break{'' if breaks > 1 else 's'} and "
            f"{multiplies or 'nothing'} multipl{'y' if multiplies > 1 else 'ies'}."
        )
    key = ", a SECRET_KEY made at the start" if key_seen else ""
    notes = ", except for what the notes name" if counts["unseen"] else ""
    return f"No multi-worker problems found. Checked: {_CHECKED}{key}{notes}. {_NOT_CHECKED}"
