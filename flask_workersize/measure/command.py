"""``flask workersize measure``: measure an app, write its profile, print the settings."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from flask import Flask

from ..app_state import get_state, load_settings
from ..errors import WorkerSizeConfigError, WorkerSizeStartError, printable
from ..sizing.advice import advise
from ..sizing.plan import compute_plan, with_held
from ..sizing.profile_location import ProfileLocation
from . import format
from .dotenv_file import write_lines
from .load_test import flask_command
from .measurement import MeasureRequest, measure


def measure_app(  # noqa: PLR0913
    app: Flask,
    import_path: str | None,
    *,
    paths: Sequence[str],
    requests: str,
    concurrency: str,
    write: str | None,
) -> None:
    """Measure an app, print what it costs, write its profile, and print the settings.

    The options are as they were typed.
    """
    settings, state = load_settings(app), get_state(app)
    task = MeasureRequest(
        app=app.import_name,
        command=flask_command(import_path),
        preload=settings.preload,
        paths=[_path(item) for item in paths],
        requests=_number("--requests", requests, 1_000_000),
        threads=_number("--concurrency", concurrency, 256),
    )
    path = Path(settings.profile_path or ProfileLocation(app.import_name, app.instance_path).path)
    if sys.platform == "win32":
        raise WorkerSizeStartError("Measuring needs gunicorn, which does not run on Windows.")
    with click.progressbar(length=task.length, label="Measuring", file=sys.stderr) as bar:
        profile, answers = measure(task, bar.update)
    click.echo("\n".join(format.table(profile)))
    for warning in (*format.errors(answers), *format.leak(profile)):
        click.echo(f"Warning: {warning}")
    for note in format.arenas(profile, os.environ):
        click.echo(f"Note: {note}")
    try:
        profile.save(path)
    except OSError as error:
        raise WorkerSizeStartError(
            f"Cannot write the profile to {path}: {error.strerror}. Set "
            "NOW_LMS_SIZING_PROFILE to another file."
        ) from None
    click.echo(printable(f"Profile written to {path}"))
    settings = settings.measured_by(profile)
    plan = compute_plan(settings, state.resources_for(settings))
    source = settings.source_of("worker_memory_mb")
    note = f"Note: {source} overrides the profile; unset it to plan from what was measured."
    click.echo(f"Plan with this profile: {plan}" if settings.profile else note)
    costs = profile.costs_for(settings.wsgi_server)
    resources = with_held(state.resources, state.held_bytes, costs.shared_mb)
    advice = advise(costs, settings, resources, settings.wsgi_server)
    click.echo("\n".join(format.recommendation(advice, costs, resources.cpus)))
    if write is not None:
        write_lines(Path(write), advice.dotenv_lines())
        click.echo(printable(f"Settings written to {write}"))


def _path(text: str) -> str:
    """Return a path as it may stand in a request."""
    if not re.fullmatch(r"/[!-~]*", text) or text.startswith("//"):
        raise WorkerSizeConfigError(
            "--path is not a path: it must begin with one slash and contain no space."
        )
    return text


def _number(option: str, text: str, most: int) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= most:
        return int(text)
    raise WorkerSizeConfigError(f"{option} is not a whole number from 1 to {most:,}.")
