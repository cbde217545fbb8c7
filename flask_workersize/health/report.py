"""CapacityReport: what a deployment can carry, for probes and people."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..plan import SizingPlan


class CapacityReport(BaseModel):
    """The body of ``/_health/capacity``.

    It holds no environment value, no path, no host name and no version. ``sources``,
    ``warnings``, ``notes`` and ``pid`` are there only for who sends the token.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["pass", "warn"] = Field(
        description='"pass", or "warn" where the plan does not fit into available memory'
    )
    serving: bool = Field(
        description="whether this app is served under the plan; false in a process that "
        "flask-workersize did not launch, where the plan is what it would be"
    )
    server: Literal["gunicorn", "waitress"] = Field(description="the WSGI server")
    workers: int = Field(ge=1, description="worker processes; 1 for waitress")
    threads: int = Field(ge=1, description="threads a worker")
    concurrency: int = Field(ge=1, description="requests that can run at once, workers × threads")
    worker_class: Literal["sync", "gthread"] | None = Field(
        description="gunicorn's worker class; null for waitress"
    )
    limited_by: Literal["cpu", "memory", "explicit", "min_workers", "max_workers"] = Field(
        description="which bound set the size"
    )
    worker_memory_mb: int = Field(ge=1, description="memory a worker is taken to need, in MB")
    estimated_memory_mb: int = Field(ge=1, description="the same for all workers, in MB")
    memory_available_mb: int = Field(
        ge=0, description="memory that was available at planning time, in MB"
    )
    cpus: float = Field(gt=0, description="CPUs that were available at planning time")
    sources: dict[str, str] | None = Field(
        None, description="with the token: where each value came from"
    )
    warnings: list[str] | None = Field(
        None, description="with the token: what the operator should change"
    )
    notes: list[str] | None = Field(
        None, description="with the token: what the detection and the plan have to say"
    )
    pid: int | None = Field(None, description="with the token: the process that answered")

    @classmethod
    def of(
        cls,
        plan: SizingPlan,
        *,
        serving: bool,
        detection_notes: Iterable[str] = (),
        details: bool = False,
    ) -> CapacityReport:
        """Make the report of a plan.

        :param plan: the plan of the app
        :param serving: whether the app is served under it
        :param detection_notes: notes of the detection, "class: detail"
        :param details: whether to tell what only the token opens
        :returns: the report; what was left out is unset
        """
        shown = {name: value for name, value in plan.to_dict().items() if name in _OPEN_TO_ALL}
        if details:
            shown |= {
                "sources": dict(plan.sources),
                "warnings": list(plan.warnings),
                "notes": [_without_folder(note) for note in detection_notes] + list(plan.notes),
                "pid": os.getpid(),
            }
        return cls(status="pass" if plan.fits else "warn", serving=serving, **shown)

    def to_json(self) -> str:
        """Return the report as JSON; what is unset is left out."""
        return self.model_dump_json(exclude_unset=True)


_OPEN_TO_ALL = frozenset(CapacityReport.model_fields) - {
    "status",
    "serving",
    "sources",
    "warnings",
    "notes",
    "pid",
}


def _without_folder(note: str) -> str:
    """Keep the class and the file's name of a note, "class: /folder/file"."""
    kind, _, detail = note.partition(": ")
    name = detail.rpartition("/")[2] if kind in ("malformed", "unreadable") else detail
    return f"{kind}: {re.sub(r'/(?:[^/ ]*/)*', '', name)}"
