"""``flask workersize measure``: measure an app, keep what it costs, say what follows."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from flask import Flask

from ..app_state import WorkerSizingState, get_state, load_settings
from ..errors import WorkerSizeConfigError, WorkerSizeStartError
from ..sizing.advice import advise
from ..sizing.plan import compute_plan, with_held
from ..sizing.profile import AppCosts, SizingProfile
from ..sizing.profile_location import ProfileLocation
from ..sizing.settings import SizingSettings
from . import format
from .dotenv_file import write_lines
from .load_test import flask_command
from .measurement import MeasureRequest, measure

MOST_REQUESTS = 1_000_000
MOST_CLIENTS = 256


@dataclass(frozen=True)
class Asked:
    """The options of the command, as they were typed."""

    paths: Sequence[str]
    requests: str
    concurrency: str
    write: str | None


def measure_app(app: Flask, import_path: str | None, asked: Asked) -> None:
    """Measure an app, print what it costs, write its profile, and print what follows."""
    settings = load_settings(app)
    task = MeasureRequest(
        app=app.import_name,
        command=flask_command(import_path),
        preload=settings.preload,
        paths=[_path(item) for item in asked.paths],
        requests=_number("--requests", asked.requests, MOST_REQUESTS),
        threads=_number("--concurrency", asked.concurrency, MOST_CLIENTS),
    )
    path = Path(settings.profile_path or ProfileLocation(app.import_name, app.instance_path).path)
    if sys.platform == "win32":
        raise WorkerSizeStartError("Measuring needs gunicorn, which does not run on Windows.")
    with click.progressbar(length=task.length, label="Measuring", file=sys.stderr) as bar:
        profile, answers = measure(task, bar.update)
    _say(format.table(profile))
    _say(f"Warning: {line}" for line in (*format.errors(answers), *format.leak(profile)))
    _keep(profile, path)
    settings = settings.measured_by(profile)
    if settings.profile is None:
        source = settings.source_of("worker_memory_mb")
        click.echo(f"Note: plans go on with {source}: unset it to plan with what was measured.")
    else:
        plan = compute_plan(settings, get_state(app).resources_for(settings))
        click.echo(f"with it, here: {plan}")
    _propose(profile.costs, settings, get_state(app), asked.write)


def _keep(profile: SizingProfile, path: Path) -> None:
    try:
        profile.save(path)
    except OSError as error:
        raise WorkerSizeStartError(
            f"The profile cannot be written to {path}: {error.strerror}. Name a file that can be "
            "written with NOW_LMS_SIZING_PROFILE."
        ) from None
    click.echo(f"written to {path}")


def _propose(
    costs: AppCosts, settings: SizingSettings, state: WorkerSizingState, write: str | None
) -> None:
    resources = with_held(state.resources, state.held_bytes, costs.shared_mb)
    advice = advise(costs, settings, resources, settings.wsgi_server)
    click.echo(f"for .env: {format.because(advice, costs, resources.cpus)}")
    _say(f"  {line}" for line in advice.dotenv_lines())
    if write is not None:
        write_lines(Path(write), advice.dotenv_lines())
        click.echo(f"written to {write}")


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _path(text: str) -> str:
    """Return a path as it may stand in a request."""
    if not re.fullmatch(r"/[!-~]*", text) or text.startswith("//"):
        raise WorkerSizeConfigError(
            "--path is not a path: it has to begin with one slash and to hold no blank. Correct "
            "it, for example to /courses."
        )
    return text


def _number(option: str, text: str, most: int) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= most:
        return int(text)
    raise WorkerSizeConfigError(
        f"{option} is not a whole number from 1 to {most:,}. Correct it, for example to 8."
    )
