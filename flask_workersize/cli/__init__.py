"""The commands: ``flask serve-prod`` and the group ``flask workersize``, over plain functions."""

from __future__ import annotations

import click

from .common import Group
from .planning import doctor_command, measure_command, plan_command
from .replicas import check_command, export_command, fleet_command
from .serving import serve_prod
from .watching import top_command

__all__ = ["serve_prod", "workersize"]


@click.group(cls=Group)
def workersize() -> None:
    """Plan, measure and check this app."""


for _command in (
    plan_command,
    measure_command,
    doctor_command,
    export_command,
    check_command,
    fleet_command,
    top_command,
):
    workersize.add_command(_command)
