"""The commands: ``flask serve-prod`` and the group ``flask workersize``, over plain functions."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import click
from flask.cli import ScriptInfo, pass_script_info

F = TypeVar("F", bound=Callable[..., Any])


def _sizing_options(*server_names: str) -> Callable[[F], F]:
    """Add the options that a plan is made from.

    :param server_names: how the option for the server is spelled
    """
    options = [
        click.option(
            *server_names,
            "wsgi_server",
            metavar="[waitress|gunicorn]",
            help="Server to run.  [default: waitress]",
        ),
        click.option(
            "--workers", metavar="NUMBER", help="Worker processes.  [default: calculated]"
        ),
        click.option(
            "--threads",
            metavar="NUMBER",
            help="Threads per worker.  [default: 1 for gunicorn, calculated for waitress]",
        ),
        click.option(
            "--worker-memory-mb",
            metavar="MB",
            help="Memory that one worker needs, in MB.  [default: 200]",
        ),
    ]

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command("serve-prod")
@_sizing_options("--wsgi-server")
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 0.0.0.0]")
@click.option("--port", metavar="NUMBER", help="Port to listen on.  [default: 8080]")
@click.option(
    "--bind",
    metavar="ADDRESS",
    multiple=True,
    help="HOST:PORT, [IPV6]:PORT or unix:PATH, instead of host and port; may be repeated.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    help="Seconds until a silent worker or an idle connection is ended.  [default: 120]",
)
@click.option(
    "--dry-run", is_flag=True, help="Print the plan and how it came about; start nothing."
)
@pass_script_info
def serve_prod(info: ScriptInfo, /, dry_run: bool, bind: tuple[str, ...], **options: Any) -> None:
    """Serve the app in production mode, in the size that this machine allows.

    The size is calculated from CPUs and available memory, and for gunicorn
    divided by the threads per worker:

    \b
      min(2 × CPUs + 1, available memory / memory of a worker)

    Every setting has a variable of the environment, such as NOW_LMS_WORKERS for
    --workers; an option wins over it.
    """  # noqa: D301 - click wants the character
    app = info.load_app()
    options["bind"] = bind or None
    if dry_run:
        from ..app_state import get_state, prepare
        from ..servers.launch import check_options
        from .format import explain

        settings, plan = prepare(app, options)
        plan, _ = check_options(app, settings, plan)
        click.echo(explain(settings, get_state(app).resources_for(settings), plan))
        return
    from ..servers.app_import import AppImport
    from ..servers.launch import launch

    launch(app, options, app_import=AppImport.of(info))


@click.group()
def workersize() -> None:
    """Look at the size of this app."""


@workersize.command("plan")
@_sizing_options("--server", "--wsgi-server")
@click.option("--cpus", metavar="NUMBER", help="Plan for another machine: its CPUs, such as 0.5.")
@click.option(
    "--memory", metavar="SIZE", help="Plan for another machine: its free memory, such as 512M."
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@pass_script_info
def plan_command(
    info: ScriptInfo, /, cpus: str | None, memory: str | None, json_: bool, **options: Any
) -> None:
    """Show what was asked, what was found and where, and which bound won.

    With --cpus and --memory it plans for another machine; --workers says what
    memory that many workers need. Nothing is started.
    """
    from ..app_state import get_state, prepare
    from ..sizing.plan import compute_plan
    from ..sizing.what_if import on_another_machine
    from .format import as_json, explain

    app = info.load_app()
    settings, _ = prepare(app, options)
    found = get_state(app).resources_for(settings)
    resources = on_another_machine(found, cpus, memory)
    show = as_json if json_ else explain
    click.echo(show(settings, resources, compute_plan(settings, resources)))


@workersize.command("measure")
@click.option(
    "--path",
    "paths",
    metavar="PATH",
    multiple=True,
    default=("/",),
    help="What is asked for, by GET; may be repeated.  [default: /]",
)
@click.option(
    "--requests", metavar="NUMBER", default="200", help="Requests of each trial.  [default: 200]"
)
@click.option(
    "--concurrency",
    metavar="NUMBER",
    default="8",
    help="Threads of the second trial, and requests at once.  [default: 8]",
)
@click.option("--write", metavar="FILE", help="Write the proposed lines to a .env file, too.")
@pass_script_info
def measure_command(info: ScriptInfo, /, **options: Any) -> None:
    """Measure what the app costs, and plan from that instead of from a guess.

    The app is served for real, by gunicorn in processes of its own on a free
    port of the loopback interface, and asked. Only paths that are named are
    asked, since even a GET may change something. What is found out is written to
    a profile, from which later plans are made: workersize-profile.json in the
    instance folder, or the file that NOW_LMS_SIZING_PROFILE names.
    """
    from ..errors import WorkerSizeConfigError
    from ..measure.command import Asked, measure_app
    from ..servers.app_import import AppImport

    app = info.load_app()
    location = AppImport.of(info)
    if location is None:
        raise WorkerSizeConfigError(
            "Measuring starts the app in processes of its own, and this command was handed a "
            "loaded one: use flask --app ... workersize measure."
        )
    measure_app(app, location.import_path, Asked(**options))


@workersize.command("doctor")
@pass_script_info
def doctor_command(info: ScriptInfo, /) -> None:
    """Say what of this app more than one worker breaks or multiplies.

    Each finding is a line with its remedy. The exit status is 1 if something
    breaks, and 0 otherwise. Nothing is served; to see what a worker would have,
    a worker is forked for a moment, and the app is loaded a second time to see
    whether its SECRET_KEY stays the same.
    """
    from ..app_state import get_state, prepare
    from ..doctor import examine
    from ..servers.app_import import AppImport
    from ..sizing.plan import compute_plan
    from .diagnosis import diagnosis

    app = info.load_app()
    settings, plan = prepare(app)
    location = AppImport.of(info)
    gunicorn_plan = compute_plan(
        settings, get_state(app).resources_for(settings), server="gunicorn"
    )
    findings = examine(app, gunicorn_plan, settings.preload, location)
    click.echo(diagnosis(findings, plan, gunicorn_plan, key_seen=location is not None))
    status = int(any(finding.level == "breaks" for finding in findings))
    if location is not None and any(not thread.daemon for thread in _other_threads()):
        # Python would wait for them, and they may never end.
        sys.stdout.flush()
        os._exit(status)
    raise click.exceptions.Exit(status)


def _other_threads() -> set[threading.Thread]:
    return {*threading.enumerate()} - {threading.main_thread()}
