"""``flask serve-prod``: a few lines over plain functions."""

from __future__ import annotations

from typing import Any

import click
from flask.cli import ScriptInfo, pass_script_info


@click.command("serve-prod")
@click.option(
    "--wsgi-server",
    metavar="[waitress|gunicorn]",
    help="The server to run.  [default: waitress]",
)
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 0.0.0.0]")
@click.option("--port", metavar="NUMBER", help="Port to listen on.  [default: 8080]")
@click.option(
    "--bind",
    metavar="ADDRESS",
    multiple=True,
    help="HOST:PORT, [IPV6]:PORT or unix:PATH, instead of host and port; may be repeated.",
)
@click.option("--workers", metavar="NUMBER", help="Worker processes.  [default: calculated]")
@click.option(
    "--threads",
    metavar="NUMBER",
    help="Threads a worker.  [default: 1 for gunicorn, calculated for waitress]",
)
@click.option(
    "--worker-memory-mb", metavar="MB", help="Memory that one worker needs.  [default: 200]"
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    help="After which a silent worker or an idle connection is ended.  [default: 120]",
)
@click.option(
    "--dry-run", is_flag=True, help="Print the plan and how it came about, start nothing."
)
@pass_script_info
def serve_prod(info: ScriptInfo, /, dry_run: bool, bind: tuple[str, ...], **options: Any) -> None:
    """Serve the app in production mode, in the size that this machine allows.

    Workers and threads are calculated from CPUs and available memory:
    min(2 × CPUs + 1, available memory / memory of a worker), divided by the
    threads of a worker. Every option has a variable of the environment, such as
    NOW_LMS_WORKERS for --workers; an option wins over it.
    """
    app = info.load_app()
    options["bind"] = bind or None
    if dry_run:
        from ..extension import prepare
        from .show import explain

        settings, plan = prepare(app, options)
        click.echo(explain(settings, plan))
        return
    from ..servers import launch
    from ..servers.handover import AppLocation

    launch(app, options, location=AppLocation.of(info))
