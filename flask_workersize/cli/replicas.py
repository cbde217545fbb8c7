"""``flask workersize export``, ``check`` and ``fleet``: many replicas of the app."""

from __future__ import annotations

from typing import Any

import click
from flask.cli import ScriptInfo, pass_script_info

from ..errors import printable
from .common import Ends, load_app, load_app_if_any


@click.command("export", cls=Ends)
@click.argument("target", metavar="TARGET")
@click.option("-o", "--output", metavar="DIR", help="Folder to write to.  [default: stdout]")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--name", metavar="NAME", default="lms", help="Name of the service.  [default: lms]")
@click.option(
    "--image", metavar="IMAGE", default="lms:1", help="Container image.  [default: lms:1]"
)
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
    help="Autoscaler within the bounds, on Kubernetes.  [default: cpu]",
)
@click.option(
    "--drain",
    metavar="SECONDS",
    default="10",
    help="Seconds to serve after SIGTERM, while /ready fails.  [default: 10]",
)
@click.option(
    "--network-policy", is_flag=True, help="Restrict access to the health port, on Kubernetes."
)
@pass_script_info
def export_command(
    info: ScriptInfo, /, target: str, output: str | None, force: bool, **options: Any
) -> None:
    """Export the plan to Compose, Kubernetes, systemd and others.

    TARGET is compose (Swarm, too), kubernetes, cloudrun (Knative), systemd,
    dockerfile, haproxy, nginx, prometheus or grafana. Each derived line has its
    reason in a comment. Existing files are kept, unless --force is given.
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
        raise WorkerSizeConfigError("--force needs -o, the folder of the files to replace.")
    app = load_app(info)
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


@click.command("check", cls=Ends)
@click.argument("files", metavar="FILE... | -", nargs=-1, required=True)
@click.option(
    "--db-connections",
    metavar="NUMBER",
    help="Connections that the database allows, for all pools of all replicas.",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@pass_script_info
def check_command(
    info: ScriptInfo, /, files: tuple[str, ...], db_connections: str | None, json_: bool
) -> None:
    """Check existing manifests.

    For Kubernetes, Knative, Compose, stacks, systemd, HAProxy and nginx; a dash
    reads standard input, as in helm template . | flask workersize check -. Each
    finding is one line: file and line number, the reason, and the remedy. The
    exit status is 1 if there are findings, 0 if there are only notes, and 2 if a
    file cannot be read. The app's needs come from its sizing profile; without
    one, or without an app, each worker is assumed to need the guide's 200 MB.
    Nothing is started.
    """
    from ..export.check.table import check
    from .check import as_json, as_lines, connections, facts_of, read_files

    app = load_app_if_any(info)
    allowed = connections(db_connections)
    texts = read_files(files)
    findings = check(texts, facts_of(app, allowed))
    click.echo(as_json(findings) if json_ else as_lines(findings, len(texts), app is not None))
    raise click.exceptions.Exit(int(any(not finding.is_note for finding in findings)))


@click.command("fleet", cls=Ends)
@click.option("--rps", metavar="NUMBER", required=True, help="Requests per second.")
@click.option(
    "--service-ms",
    metavar="MS",
    help="Mean time of a request in ms, without queueing.  [default: from the sizing profile]",
)
@click.option(
    "--p95-wait-ms",
    "wait_ms",
    metavar="MS",
    default="50",
    help="Longest wait for a slot, in ms, for 95 % of requests.  [default: 50]",
)
@click.option(
    "--balancer",
    metavar="[leastconn|random|roundrobin]",
    default="leastconn",
    help="How requests are distributed; a Kubernetes Service is random.  [default: leastconn]",
)
@click.option(
    "--instance",
    "instances",
    metavar="MEMORY[:CPUS][@PRICE]",
    multiple=True,
    help="Size of a replica, such as 512M:0.5@7; may be repeated.  [default: this machine]",
)
@click.option("--spare", metavar="NUMBER", default="0", help="Extra replicas.  [default: 0]")
@pass_script_info
def fleet_command(info: ScriptInfo, /, **options: Any) -> None:
    """Count the replicas that a load needs.

    Shows the replicas, what sets their number, and their cost if you give
    prices. The wait follows Erlang's formula: with one queue for all replicas
    (leastconn), or one for each (random; an upper bound for roundrobin).
    Nothing is started.
    """
    from ..app_state import get_state, prepare
    from .fleet import fleet_lines

    app = load_app(info)
    settings, plan = prepare(app)
    click.echo("\n".join(fleet_lines(settings, plan, get_state(app).held_bytes, **options)))
