"""What the doctor has found, one line a finding."""

from __future__ import annotations

from collections.abc import Sequence

from ..doctor import Finding
from ..sizing.plan import SizingPlan

_LABELS = {"breaks": "Breaks", "multiplies": "Multiplies", "unseen": "Note"}

_CHECKED = (
    "rate limits and caches in memory",
    "schedulers",
    "threads and connections before the fork",
    "pools of connections",
)


def diagnosis(
    findings: Sequence[Finding], plan: SizingPlan, gunicorn_plan: SizingPlan, key_seen: bool
) -> str:
    """Return the findings, their summary, and how many workers are planned.

    ``key_seen`` is whether ``SECRET_KEY`` could be compared with that of another load.
    """
    lines = [f"{_LABELS[finding.level]}: {finding}" for finding in findings]
    return "\n".join([*lines, f"{_summary(findings, key_seen)} {_planned(plan, gunicorn_plan)}"])


def _summary(findings: Sequence[Finding], key_seen: bool) -> str:
    counts = {level: sum(found.level == level for found in findings) for level in _LABELS}
    if counts["breaks"] or counts["multiplies"]:
        breaks, multiplies = counts["breaks"], counts["multiplies"]
        return (
            f"With more than one worker {breaks or 'nothing'} break{'' if breaks > 1 else 's'} and "
            f"{multiplies or 'nothing'} multipl{'y' if multiplies > 1 else 'ies'}."
        )
    checked = [*_CHECKED, *(["a SECRET_KEY made at the start"] if key_seen else [])]
    return (
        f"No multi-worker problems found. Checked: {', '.join(checked[:-1])} and {checked[-1]}"
        f"{', except for what the notes name' if counts['unseen'] else ''}."
    )


def _planned(plan: SizingPlan, gunicorn_plan: SizingPlan) -> str:
    if plan.server == "gunicorn":
        return f"Planned: gunicorn with {_count(plan.workers, 'worker')}."
    workers = _count(gunicorn_plan.workers, "worker")
    return f"Planned: {plan.server}, which is one process; gunicorn would have {workers}."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
