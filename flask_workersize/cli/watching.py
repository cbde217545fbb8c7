"""``flask workersize top``: servers, as they are now."""

from __future__ import annotations

import os

import click
from flask.cli import ScriptInfo, pass_script_info

from .common import Ends, load_app


@click.command("top", cls=Ends)
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option("--once", is_flag=True, help="Print once; exit status 1 if a server does not answer.")
@click.option(
    "--interval", metavar="SECONDS", default="1", help="Seconds between updates.  [default: 1]"
)
@pass_script_info
def top_command(info: ScriptInfo, /, urls: tuple[str, ...], once: bool, interval: str) -> None:
    """Watch how busy servers are.

    The report of /_health/capacity in the terminal: slots, queue, rates, the
    last hour, memory, workers, events, and what to do. A URL is a health port,
    such as http://host:8081, or the app's own address; several URLs show a
    fleet. Without a URL it is the server of this app, and only then the app is
    loaded.

    On the app's own port the live figures need NOW_LMS_HEALTH_TOKEN. It is sent
    to each URL that you name, and nowhere else.

    Ctrl-C ends the command with status 0. If the output is not a terminal, the
    report is printed once.
    """
    from .top.run import own_server, read_seconds, run
    from .top.target import Target

    seconds = read_seconds(interval)
    targets = [Target.of(url) for url in urls]
    token = os.environ.get("NOW_LMS_HEALTH_TOKEN")
    if not targets:
        target, token = own_server(load_app(info))
        targets = [target]
    run(targets, token, once, seconds)
