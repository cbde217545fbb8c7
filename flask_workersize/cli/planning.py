"""``flask workersize plan``, ``measure`` and ``doctor``: one app on one machine."""

from __future__ import annotations

from typing import Any

import click
from flask.cli import ScriptInfo, pass_script_info

from .common import Ends, load_app, option_names, server_option, sizing_options


@click.command("plan", cls=Ends)
@server_option("--server", "--wsgi-server", "wsgi_server")
@sizing_options
@click.option("--cpus", metavar="NUMBER", help="Plan for another machine: its CPUs, such as 0.5.")
@click.option("--memory", metavar="SIZE", help="Its free memory, such as 512M.")
@click.option("--all", "show_all", is_flag=True, help="Show the settings at their defaults, too.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@pass_script_info
def plan_command(
    info: ScriptInfo,
    /,
    cpus: str | None,
    memory: str | None,
    json_: bool,
    show_all: bool,
    **options: Any,
) -> None:
    """Show what was set, what was found and where, and which bound won.

    With --cpus and --memory it plans for another machine; --workers shows how
    much memory that many workers need. Nothing is started.
    """
    from ..app_state import bounds_of, get_state, prepare
    from ..sizing.plan import compute_plan
    from ..sizing.what_if import on_another_machine
    from .format import as_json, explain

    app = load_app(info)
    settings, _ = prepare(app, options, option_names())
    found = get_state(app).resources_for(settings)
    resources = on_another_machine(found, cpus, memory)
    plan = compute_plan(settings, resources)
    bounds = bounds_of(app, settings, plan)
    table = explain(settings, resources, plan, show_all, bounds)
    click.echo(as_json(settings, resources, plan, bounds) if json_ else table)


@click.command("measure", cls=Ends)
@click.option(
    "--path",
    "paths",
    metavar="PATH",
    multiple=True,
    default=("/",),
    help="Path to request, by GET; may be repeated.  [default: /]",
)
@click.option(
    "--requests", metavar="NUMBER", default="200", help="Requests of each test.  [default: 200]"
)
@click.option(
    "--concurrency",
    metavar="NUMBER",
    default="8",
    help="Concurrent requests, and threads of the second test.  [default: 8]",
)
@click.option("--write", metavar="FILE", help="Also write the recommended settings to a .env file.")
@pass_script_info
def measure_command(info: ScriptInfo, /, **options: Any) -> None:
    """Measure what the app costs, and plan from that instead of from a guess.

    gunicorn serves the app for real, in processes of its own on a free port of
    the loopback interface. Only the paths that you name are requested, since
    even a GET may change something. The results are written to a profile, from
    which later plans are made: workersize-profile.json in the instance folder,
    or the file that NOW_LMS_SIZING_PROFILE names.
    """
    from ..errors import WorkerSizeConfigError
    from ..measure.command import measure_app
    from ..servers.app_import import AppImport

    app = load_app(info)
    location = AppImport.of(info)
    if location is None:
        raise WorkerSizeConfigError(
            "Measuring has to start the app itself: use flask --app ... workersize measure."
        )
    measure_app(app, location.import_path, **options)


@click.command("doctor", cls=Ends)
@pass_script_info
def doctor_command(info: ScriptInfo, /) -> None:
    """Check whether the app is safe with more than one worker.

    Each finding is a line with its remedy. The exit status is 1 if something
    breaks, and 0 otherwise. Nothing is served: the command forks one worker for
    a moment, to check what it inherits, and loads the app a second time, to
    check whether its SECRET_KEY stays the same.
    """
    from ..app_state import get_state, prepare
    from ..doctor import examine
    from ..servers.app_import import AppImport
    from ..sizing.plan import compute_plan
    from .diagnosis import diagnosis

    app = load_app(info)
    location = AppImport.of(info)
    settings, plan = prepare(app)
    resources = get_state(app).resources_for(settings)
    gunicorn_plan = compute_plan(settings, resources, server="gunicorn")
    findings = examine(app, gunicorn_plan, settings.preload, location)
    click.echo(diagnosis(findings, plan, gunicorn_plan, key_seen=location is not None))
    status = int(any(finding.level == "breaks" for finding in findings))
    raise click.exceptions.Exit(status)
