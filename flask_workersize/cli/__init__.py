"""The commands: ``flask serve-prod`` and the group ``flask workersize``, over plain functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from flask import Flask
from flask.cli import NoAppException, ScriptInfo, pass_script_info

from ..errors import printable
from ..servers.ending import process_end

F = TypeVar("F", bound=Callable[..., Any])


_server_option = partial(
    click.option, metavar="[waitress|gunicorn]", help="Server to run.  [default: waitress]"
)


def _sizing_options(command: F) -> F:
    """Add the options that a plan is made from, beside the server."""
    for add in (
        click.option(
            "--worker-memory-mb",
            metavar="MB",
            help="Memory that one worker needs, in MB.  [default: 200]",
        ),
        click.option(
            "--threads",
            metavar="NUMBER",
            help="Threads per worker.  [default: 1 for gunicorn, calculated for waitress]",
        ),
        click.option(
            "--workers", metavar="NUMBER", help="Worker processes.  [default: calculated]"
        ),
    ):
        command = add(command)
    return command


def _option_names() -> dict[str, str]:
    """Return how each option is called in messages: click can have taken it from a variable."""
    context = click.get_current_context()
    names = {}
    for param in context.command.params:
        if param.name and param.opts:
            names[param.name] = param.opts[0]
            if context.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT:
                names[param.name] = f"{context.auto_envvar_prefix}_{param.name.upper()}"
    return names


class _Ends(click.Command):
    """A command whose process ends after it, whatever threads of the app run on.

    Not if it was handed a loaded app: then the process is another's, such as a test's.
    """

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the options; help and a wrong option end the command here."""
        try:
            return super().make_context(*args, **extra)
        except BaseException:
            with _end_after(extra.get("parent")):
                raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _end_after(ctx):
            return super().invoke(ctx)


class _Group(_Ends, click.Group):
    command_class = _Ends


def _end_after(ctx: click.Context | None) -> AbstractContextManager[None]:
    info = ctx.find_object(ScriptInfo) if ctx else None
    if ctx is None or info is None:
        return nullcontext()
    group = ctx.find_root().command
    # A program's own FlaskGroup makes the app, too.
    is_made_here = info.create_app in (None, getattr(group, "create_app", None))
    return process_end.bounded() if is_made_here else nullcontext()


@click.command("serve-prod", cls=_Ends)
@_server_option("--wsgi-server")
@_sizing_options
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
@click.option("--dry-run", is_flag=True, help="Print the plan and its reasons; start nothing.")
@click.option("--all", "show_all", is_flag=True, help="With --dry-run: show defaults, too.")
@pass_script_info
def serve_prod(
    info: ScriptInfo, /, dry_run: bool, show_all: bool, bind: tuple[str, ...], **options: Any
) -> None:
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
        from ..app_state import bounds_of, get_state, prepare
        from ..servers.launch import check_options
        from .format import explain

        settings, plan = prepare(app, options, _option_names())
        plan, _ = check_options(app, settings, plan)
        resources = get_state(app).resources_for(settings)
        bounds = bounds_of(app, settings, plan)
        click.echo(explain(settings, resources, plan, show_all, bounds))
        return
    from ..servers.app_import import AppImport
    from ..servers.launch import launch

    launch(app, options, _option_names(), AppImport.of(info))


@click.group(cls=_Group)
def workersize() -> None:
    """Plan, measure and check this app."""


def _load(info: ScriptInfo) -> Flask:
    """Load the app of a command of the group, in whose context the command then runs.

    :raises WorkerSizeConfigError: if there is none, or it does not use this package
    """
    from ..app_state import EXTENSION_KEY
    from ..errors import WorkerSizeConfigError

    try:
        app = info.load_app()
    except NoAppException as error:
        # A traceback of the app's own has more lines, which are shown as they are.
        if len(error.message.splitlines()) > 1:
            raise
        raise WorkerSizeConfigError(error.message) from None
    if EXTENSION_KEY not in app.extensions:
        raise WorkerSizeConfigError(
            f"The app {app.name!r} does not use flask-workersize. Call WorkerSizing(app) where it "
            "is created."
        )
    click.get_current_context().with_resource(app.app_context())
    return app


def _load_if_any(info: ScriptInfo) -> Flask | None:
    """Load the app for a command that also works without one; one that is named has to be there."""
    from ..app_state import EXTENSION_KEY

    if info.app_import_path:
        return _load(info)
    with suppress(NoAppException):
        if EXTENSION_KEY in info.load_app().extensions:
            return _load(info)
    return None


@workersize.command("plan")
@_server_option("--server", "--wsgi-server", "wsgi_server")
@_sizing_options
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

    app = _load(info)
    settings, _ = prepare(app, options, _option_names())
    found = get_state(app).resources_for(settings)
    resources = on_another_machine(found, cpus, memory)
    plan = compute_plan(settings, resources)
    bounds = bounds_of(app, settings, plan)
    table = explain(settings, resources, plan, show_all, bounds)
    click.echo(as_json(settings, resources, plan, bounds) if json_ else table)


@workersize.command("measure")
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

    app = _load(info)
    location = AppImport.of(info)
    if location is None:
        raise WorkerSizeConfigError(
            "Measuring has to start the app itself: use flask --app ... workersize measure."
        )
    measure_app(app, location.import_path, **options)


@workersize.command("doctor")
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

    app = _load(info)
    location = AppImport.of(info)
    settings, plan = prepare(app)
    resources = get_state(app).resources_for(settings)
    gunicorn_plan = compute_plan(settings, resources, server="gunicorn")
    findings = examine(app, gunicorn_plan, settings.preload, location)
    click.echo(diagnosis(findings, plan, gunicorn_plan, key_seen=location is not None))
    status = int(any(finding.level == "breaks" for finding in findings))
    raise click.exceptions.Exit(status)


@workersize.command("export")
@click.argument("target", metavar="TARGET")
@click.option("-o", "--output", metavar="DIR", help="Folder to write to.  [default: stdout]")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option("--name", metavar="NAME", default="lms", help="Name of it all.  [default: lms]")
@click.option("--image", metavar="IMAGE", default="lms:1", help="Its image.  [default: lms:1]")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory limit of a replica, such as 512M.  [default: from the sizing profile]",
)
@click.option("--cpus", metavar="NUMBER", help="CPUs of a replica, such as 0.5.  [default: 1]")
@click.option(
    "--replicas",
    metavar="N|LOW..HIGH",
    default="3",
    help="Replicas, or bounds for an autoscaler, such as 2..10.  [default: 3]",
)
@click.option(
    "--autoscale",
    metavar="[cpu|keda|none]",
    help="What chooses within the bounds, on Kubernetes.  [default: cpu]",
)
@click.option(
    "--drain",
    metavar="SECONDS",
    default="10",
    help="Seconds to serve after SIGTERM, while /ready fails.  [default: 10]",
)
@click.option("--network-policy", is_flag=True, help="Fence the health port, on Kubernetes.")
@pass_script_info
def export_command(
    info: ScriptInfo, /, target: str, output: str | None, force: bool, **options: Any
) -> None:
    """Write the plan for what runs a fleet.

    TARGET is compose (Swarm, too), kubernetes, cloudrun (Knative), systemd,
    dockerfile, haproxy, nginx, prometheus or grafana. Every derived line has its
    reason beside it. Files that are there are kept, unless --force is given.
    """
    from pathlib import Path

    from ..app_state import get_state, prepare, smallest_pool
    from ..errors import WorkerSizeConfigError
    from ..export.intent import read_intent
    from ..export.render import TARGETS, render
    from ..export.write import shown, write
    from ..servers.app_import import AppImport

    if target not in TARGETS:
        raise WorkerSizeConfigError(f"TARGET must be one of {', '.join(TARGETS)}.")
    if output == "":
        raise WorkerSizeConfigError("-o is empty: name a folder, such as . for this one.")
    if force and output is None:
        raise WorkerSizeConfigError("--force is for files: name their folder with -o.")
    app = _load(info)
    settings, _ = prepare(app)
    location = AppImport.of(info)
    path = location.import_path if location else app.import_name
    held, pool = get_state(app).held_bytes, smallest_pool(app)
    intent = read_intent(settings, held, app=path, pool=pool, **options)
    files = render(target, intent)
    if output is None:
        click.echo(shown(files), nl=False)
        return
    write(files, Path(output), force)
    click.echo(f"Written to {printable(output)}: {', '.join(files)}")


@workersize.command("check")
@click.argument("files", metavar="FILE... | -", nargs=-1, required=True)
@click.option(
    "--db-connections",
    metavar="NUMBER",
    help="Connections that the database allows; all pools of all replicas have to fit.",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@pass_script_info
def check_command(
    info: ScriptInfo, /, files: tuple[str, ...], db_connections: str | None, json_: bool
) -> None:
    """Check manifests that you have.

    For Kubernetes, Knative, Compose, stacks, systemd, HAProxy and nginx; a dash
    reads standard input, as in helm template . | flask workersize check -. Each
    finding is a line with its file and line, why it is one, and its remedy. The
    exit status is 1 if there are findings, 0 if there are only notes, and 2 if a
    file cannot be read. If the app was measured, that decides what it needs;
    otherwise, and if there is no app here, a worker is assumed to need the guide's
    200 MB. Nothing is started.
    """
    from ..export.check.table import check
    from .check import as_json, as_lines, connections, facts_of, read_files

    app = _load_if_any(info)
    allowed = connections(db_connections)
    texts = read_files(files)
    findings = check(texts, facts_of(app, allowed))
    click.echo(as_json(findings) if json_ else as_lines(findings, len(texts), app is not None))
    raise click.exceptions.Exit(int(any(not finding.is_note for finding in findings)))


@workersize.command("fleet")
@click.option("--rps", metavar="NUMBER", required=True, help="Requests a second.")
@click.option(
    "--service-ms",
    metavar="MS",
    help="Mean time of a request in ms, without waiting.  [default: from the sizing profile]",
)
@click.option(
    "--p95-wait-ms",
    "wait_ms",
    metavar="MS",
    default="50",
    help="Wait for a slot that 95 % stay within, in ms.  [default: 50]",
)
@click.option(
    "--balancer",
    metavar="[leastconn|random|roundrobin]",
    default="leastconn",
    help="How requests are spread; a Service of Kubernetes is random.  [default: leastconn]",
)
@click.option(
    "--instance",
    "instances",
    metavar="MEMORY[:CPUS][@PRICE]",
    multiple=True,
    help="Size of a replica, such as 512M:0.5@7; may be repeated.  [default: this machine]",
)
@click.option("--spare", metavar="NUMBER", default="0", help="Replicas on top.  [default: 0]")
@pass_script_info
def fleet_command(info: ScriptInfo, /, **options: Any) -> None:
    """Count the replicas that a load needs.

    How many of which plan, what binds, and what they cost if you give prices.
    The wait is calculated by Erlang's formula: with one queue for all
    (leastconn), and with one for each replica (random; for roundrobin that is
    an upper bound). Nothing is started.
    """
    from ..app_state import get_state, prepare
    from .fleet import fleet_lines

    app = _load(info)
    settings, plan = prepare(app)
    click.echo("\n".join(fleet_lines(settings, plan, get_state(app).held_bytes, **options)))
