"""``flask serve-prod``: serve the app, or show the plan."""

from __future__ import annotations

from typing import Any

import click
from flask.cli import ScriptInfo, pass_script_info

from .common import Ends, load_app, option_names, server_option, sizing_options


@click.command("serve-prod", cls=Ends)
@server_option("--wsgi-server")
@sizing_options
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
    app = load_app(info)
    options["bind"] = bind or None
    if dry_run:
        from ..app_state import bounds_of, get_state, prepare
        from ..servers.launch import check_options
        from .format import explain

        settings, plan = prepare(app, options, option_names())
        plan, _ = check_options(app, settings, plan)
        resources = get_state(app).resources_for(settings)
        bounds = bounds_of(app, settings, plan)
        click.echo(explain(settings, resources, plan, show_all, bounds))
        return
    from ..servers.app_import import AppImport
    from ..servers.launch import launch

    launch(app, options, option_names(), AppImport.of(info))
