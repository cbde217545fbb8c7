"""Directives whose text comes from the code when the docs are built, so that it cannot drift."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import Any, ClassVar

import click
from docutils import nodes
from docutils.parsers.rst import directives
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from flask_workersize import (
    CapacityReport,
    HostFacts,
    Resources,
    SizingPlan,
    SizingSettings,
    WorkerSizeConfigError,
    WorkerSizing,
    compute_plan,
    detect_resources,
)
from flask_workersize.app_state import get_state
from flask_workersize.cli import serve_prod, workersize
from flask_workersize.cli.format import explain, shown
from flask_workersize.export.check.table import RULES
from flask_workersize.health.metrics import render
from flask_workersize.health.report import WorkerReport
from flask_workersize.measure import format
from flask_workersize.runtime.queue_times import BOUNDS_SECONDS, QueueTotals
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import GuardState, Snapshot, State, WorkerMemory
from flask_workersize.sizing.advice import advise
from flask_workersize.sizing.profile import SizingProfile
from flask_workersize.sizing.settings import NAMES
from flask_workersize.sizing.sources import GUNICORN_ARGS, config_key, options_key
from flask_workersize.sizing.validators import ServerName

logger = logging.getLogger(__name__)

MB = 1024 * 1024
HELD_MB = 50
"""What the app of the docs holds when it is loaded, on whichever machine they are built."""

SHOWN_PID = 4711
HIERARCHY = "/sys/fs/cgroup"

MACHINE = {
    "cpus": float,
    "memory-mb": directives.positive_int,
    "group": directives.path,
    "limits": directives.unchanged,
}
COMMANDS = {
    "serve-prod": serve_prod,
    **{f"workersize {name}": command for name, command in workersize.commands.items()},
}


class ControlGroupFiles:
    """The files of a process in a control group, version 2.

    :param group: its group, such as ``/lms.slice/lms.service``
    :param limits: lines of ``/lms.slice/memory.max: 536870912``
    """

    def __init__(self, group: str, limits: str) -> None:
        self._texts = {
            "/proc/self/cgroup": f"0::{group}\n",
            "/proc/self/mountinfo": f"30 23 0:26 / {HIERARCHY} rw - cgroup2 cgroup2 rw\n",
        }
        for line in limits.splitlines():
            name, _, text = line.partition(":")
            self._texts[f"{HIERARCHY}{name.strip()}"] = f"{text.strip()}\n"

    def read_text(self, path: str) -> str:
        """Return the text of a file."""
        if path not in self._texts:
            raise FileNotFoundError(path)
        return self._texts[path]

    def is_dir(self, path: str) -> bool:
        """Return whether the path is a folder."""
        return any(name.startswith(f"{path}/") for name in self._texts)


def machine(options: dict[str, Any]) -> Resources:
    """Return the resources of a machine that the docs talk about, inside its control groups."""
    cpus, memory = options.get("cpus", 4), options.get("memory-mb", 2048) * MB
    if "limits" not in options:
        return Resources(cpus, "host", None, memory, memory, "host", None)
    host = HostFacts(int(cpus), int(cpus), memory, memory, "linux")
    files = ControlGroupFiles(options.get("group", "/"), options["limits"])
    return detect_resources(host, files)


def watched(plan: SizingPlan, busy: int, queued: int) -> Snapshot:
    """Return the live figures of a server that has run for an hour.

    :param plan: its plan
    :param busy: how many requests run; the first workers have them
    :param queued: how many wait
    """
    board = Scoreboard(plan.workers, plan.threads)
    for age in range(1, plan.workers + 1):
        board.allocate(age)
    board.state = State.SERVING
    seen = board.read()
    rows = []
    for row in seen.workers:
        running = min(busy - plan.threads * row.number, plan.threads)
        rows.append(
            row._replace(
                pid=SHOWN_PID + 2 + row.number,
                is_ready=True,
                lived_seconds=3600.0,
                silent_seconds=0.25,
                running_seconds=tuple(0.5 + 0.25 * number for number in range(running)),
                served=1200 - 10 * row.number,
                busy_ns=int((420.0 - row.number) * 1e9),
                cpu_ns=int((61.0 - row.number / 4) * 1e9),
                memory=WorkerMemory(96 * MB, 41 * MB, 30 * MB, 28 * MB, age_seconds=0.75),
            )
        )
    memory = {"memory_limit_bytes": 1024 * MB, "memory_used_bytes": 412 * MB}
    now = replace(seen, workers=tuple(rows), stored={**seen.stored, **memory}, guard=GuardState.OK)
    now = replace(now, uptime_seconds=3600.0)
    totals = QueueTotals((3400, 150, *[0] * (len(BOUNDS_SECONDS) - 1)), 9_000_000_000, 0, 1)
    connections = queued - now.waiting
    return replace(now, connections=connections, waits=(0.0026, 0.009), queue_totals=totals)


def read_command(line: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Split ``NAME=value ... flask serve-prod --option ...`` into environment and options."""
    words = shlex.split(line)
    environ: dict[str, str] = {}
    while words and "=" in words[0] and not words[0].startswith("-"):
        name, _, value = words.pop(0).partition("=")
        environ[name] = value
    options = serve_prod.make_context("serve-prod", words[words.index("serve-prod") + 1 :]).params
    del options["dry_run"], options["show_all"]
    options["bind"] = options["bind"] or None
    return environ, options


def literal(text: str, language: str = "console") -> nodes.literal_block:
    """Return a literal block."""
    return nodes.literal_block(text, text, language=language)


def escape(text: str) -> str:
    """Return plain text as reStructuredText."""
    return re.sub(r"([*`|_\\])", r"\\\1", text)


def sentence(text: str) -> str:
    """Return a description of the code as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def list_table(header: list[str], rows: Iterable[list[str]], widths: str = "auto") -> str:
    """Return a table as reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in [header, *rows]:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines)


class DryRun(SphinxDirective):
    """What ``--dry-run`` prints for a command on a machine; ``:show: line`` is only the plan."""

    has_content = True
    option_spec: ClassVar = {
        **MACHINE,
        "show": lambda value: directives.choice(value, ("all", "line", "messages")),
        "config": json.loads,
    }

    def run(self) -> list[nodes.Node]:
        """Run every line of the content."""
        resources = machine(self.options)
        blocks = [self._session(line, resources) for line in self.content if line.strip()]
        return [literal("\n\n".join(blocks))]

    def _session(self, line: str, resources: Resources) -> str:
        environ, options = read_command(line)
        show = self.options.get("show", "all")
        prompt = f"$ {line}" + (" --dry-run" if show == "all" else "")
        try:
            settings = SizingSettings.load(
                environ=environ, config=self.options.get("config", {}), options=options
            )
        except WorkerSizeConfigError as error:
            return f"{prompt}\nError: {error.format_message()}"
        plan = compute_plan(settings, resources)
        if show == "line":
            return "\n".join([prompt, str(plan), *(f"Warning: {text}" for text in plan.warnings)])
        output = explain(settings, resources, plan)
        if show == "messages":
            output = "\n".join(re.findall(r"^(?:Warning|Note): .*$", output, re.M))
            if not output:
                logger.warning("this command has nothing to say", location=self.get_location())
        return f"{prompt}\n{output}"


class PlanCommand(SphinxDirective):
    """What ``flask workersize plan`` prints on a machine: the command itself is run.

    ``:last: 2`` shows only the last lines, ``:code:`` the language of the output, ``:wrap: 86``
    breaks lines that are longer. Files that it names are in the folder of the docs.
    """

    has_content = True
    option_spec: ClassVar = {
        **MACHINE,
        "last": directives.positive_int,
        "code": directives.unchanged,
        "wrap": directives.positive_int,
    }

    def run(self) -> list[nodes.Node]:
        """Run every line of the content."""
        resources = machine(self.options)
        blocks = [self._session(line, resources) for line in self.content if line.strip()]
        return [literal("\n\n".join(blocks), self.options.get("code", "console"))]

    def _session(self, line: str, resources: Resources) -> str:
        words = shlex.split(line)
        start = words.index("flask")
        unset = {name for names in NAMES.values() for name in names.variables} | {GUNICORN_ARGS}
        environ = dict.fromkeys(unset) | dict(word.split("=", 1) for word in words[:start])
        app = Flask("lms")
        WorkerSizing(app)
        get_state(app).resources = resources
        get_state(app).held_bytes = HELD_MB * MB
        with chdir(self.env.srcdir):
            done = app.test_cli_runner().invoke(args=words[start + 1 :], env=environ)
        if done.exit_code not in ((1,) if "check" in words else (0, 2)):
            logger.warning("%s: status %s", line, done.exit_code, location=self.get_location())
        output = done.output.rstrip().splitlines()
        if "wrap" in self.options:
            width = self.options["wrap"]
            output = [part for row in output for part in wrap(row, width, subsequent_indent="    ")]
        last = self.options.get("last", len(output))
        shown = output if last >= len(output) else ["...", *output[-last:]]
        return "\n".join(shown if "code" in self.options else [f"$ {line}", *shown])


class GuideCase(SphinxDirective):
    """A calculation of the guide beside ours; a number that differs fails the build.

    Each server's option is ``WORKERSxTHREADS MB | the guide's words``.
    """

    option_spec: ClassVar = {
        **MACHINE,
        "env": directives.unchanged,
        "gunicorn": directives.unchanged,
        "waitress": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """Plan for each server, compare, and show both."""
        resources = machine(self.options)
        environ = dict(word.split("=") for word in self.options.get("env", "").split())
        settings = SizingSettings.load(environ=environ)
        rows, lines = [], []
        servers: tuple[ServerName, ServerName] = ("gunicorn", "waitress")
        for server in servers:
            if server not in self.options:
                continue
            expected, _, words = self.options[server].partition("|")
            plan = compute_plan(settings, resources, server)
            self._compare(plan, expected)
            shape = f"{plan.workers} × {plan.threads}"
            about = f"{plan.estimated_memory_mb} MB"
            rows.append([server, words.strip(), shape, str(plan.concurrency), about])
            lines.append(str(plan))
            lines += [f"Note: {note}" for note in plan.notes]
        header = ["Server", "The guide says", "Workers × threads", "Requests at once", "Memory"]
        table = self.parse_text_to_nodes(list_table(header, rows))
        return [*table, literal("\n".join(lines), "text")]

    def _compare(self, plan: SizingPlan, expected: str) -> None:
        found = f"{plan.workers}x{plan.threads} {plan.estimated_memory_mb}"
        if found != expected.strip():
            logger.warning(
                "%s: the guide says %s, the code %s",
                plan.server,
                expected.strip(),
                found,
                location=self.get_location(),
            )


class SettingsTable(SphinxDirective):
    """The names and the default of every setting."""

    def run(self) -> list[nodes.Node]:
        """Make the table from the settings model."""
        rows = [
            [
                f"`{name}`",
                ", ".join(f":envvar:`{variable}`" for variable in names.variables),
                _default(name),
            ]
            for name, names in NAMES.items()
        ]
        text = list_table(["Setting", "Variables, the preferred one first", "Default"], rows)
        return self.parse_text_to_nodes(text)


class SettingsReference(SphinxDirective):
    """Every setting with all its names."""

    def run(self) -> list[nodes.Node]:
        """Make an entry for each setting from the settings model."""
        options = {param.name: param.opts[0] for param in serve_prod.params}
        entries = []
        for name, names in NAMES.items():
            first, *others = names.variables
            lines = [f".. envvar:: {first}", *(f"             {other}" for other in others), ""]
            description = SizingSettings.model_fields[name].description or ""
            lines += [f"   {escape(sentence(description))}", ""]
            facts = {
                "Option": f"``{options[name]}``" if name in options else "",
                "In app.config": f"``{config_key(name)}``",
                "In GUNICORN_CMD_ARGS": ", ".join(f"``{flag}``" for flag in names.gunicorn_flags),
                "In options of a server": ", ".join(
                    f"``{options_key(server)}[{key!r}]``"
                    for server, key in names.server_option.items()
                ),
                "Default": _default(name),
            }
            lines += [f"   :{fact}: {value}" for fact, value in facts.items() if value]
            entries.append("\n".join(lines))
        return self.parse_text_to_nodes("\n\n".join(entries))


_DEFAULTS = {
    "health_host": "the app's",
    "sizing_profile": "the one in the instance folder, if any",
    "workers": "calculated",
    "threads": "calculated for waitress, 1 for gunicorn",
    "bind": "host:port",
}
"""What happens where the model has no value."""


def _default(name: str) -> str:
    default = SizingSettings.model_fields[name].default
    if default is None:
        return _DEFAULTS.get(name, "none")
    return shown(name, default)


class CommandHelp(SphinxDirective):
    """What a command prints with ``--help``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Ask the command for its help."""
        name = self.arguments[0]
        command = COMMANDS[name]
        context = click.Context(command, info_name=f"flask {name}", terminal_width=80)
        return [literal(f"$ flask {name} --help\n{command.get_help(context)}")]


class Report(SphinxDirective):
    """The capacity report of a command on a machine; ``:details:`` is what the token opens.

    ``:busy:`` and ``:queued:`` add the live figures of a server with so many requests.
    """

    has_content = True
    option_spec: ClassVar = {
        **MACHINE,
        "busy": directives.nonnegative_int,
        "queued": directives.nonnegative_int,
        "details": directives.flag,
        "not-serving": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """Make the report as the endpoint does."""
        environ, options = read_command(self.content[0])
        settings = SizingSettings.load(environ=environ, options=options)
        plan = compute_plan(settings, machine(self.options))
        busy, queued = self.options.get("busy"), self.options.get("queued", 0)
        report = CapacityReport.of(
            plan,
            serving="not-serving" not in self.options,
            details="details" in self.options,
            now=None if busy is None else watched(plan, busy, queued),
        )
        if report.pid is not None:
            report = report.model_copy(update={"pid": SHOWN_PID})
        body = json.dumps(json.loads(report.to_json()), indent=2, ensure_ascii=False)
        return [literal(body, "json")]


class ReportFields(SphinxDirective):
    """A table of the fields of the report; with the argument ``rows``, of one worker in it."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the table from the model."""
        model: type[BaseModel] = WorkerReport if self.arguments == ["processes"] else CapacityReport
        rows = [
            [f"`{name}`", escape(sentence(field.description or ""))]
            for name, field in model.model_fields.items()
            if not field.exclude
        ]
        return self.parse_text_to_nodes(list_table(["Field", "Meaning"], rows, "25 75"))


class Metrics(SphinxDirective):
    """A table of the metrics, read from what Prometheus gets."""

    def run(self) -> list[nodes.Node]:
        """Ask for the metrics as Prometheus does."""
        plan = compute_plan(SizingSettings.load(environ={}), machine({}))
        report = CapacityReport.of(plan, serving=True, now=watched(plan, busy=0, queued=0))
        body, _ = render(report, "")
        rows = [
            [f"`{sample.name}`", family.type, escape(family.documentation)]
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
            if "le" not in sample.labels or sample.labels["le"] == "+Inf"
        ]
        return self.parse_text_to_nodes(list_table(["Metric", "Type", "Meaning"], rows))


class CheckRules(SphinxDirective):
    """A table of the rules of ``flask workersize check``; with the argument ``notes``, the rest."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the table from the rules."""
        rows = [
            [escape(text) for text in (f"{rule.what}.", rule.why, rule.remedy)]
            for rule in RULES
            if rule.is_note == bool(self.arguments)
        ]
        return self.parse_text_to_nodes(list_table(["What", "Why", "Remedy"], rows, "30 38 32"))


class ReportSchema(SphinxDirective):
    """The JSON Schema of the report."""

    def run(self) -> list[nodes.Node]:
        """Ask the model for its schema."""
        return [literal(json.dumps(CapacityReport.model_json_schema(), indent=2), "json")]


class Measured(SphinxDirective):
    """What ``flask workersize measure`` says of a profile that it has written, on a machine.

    The argument is the file; ``:show: file`` is the file itself.
    """

    required_arguments = 1
    option_spec: ClassVar = {
        **MACHINE,
        "show": lambda value: directives.choice(value, ("all", "file")),
    }

    def run(self) -> list[nodes.Node]:
        """Read the profile, and say it."""
        name, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(name)
        if self.options.get("show") == "file":
            return [literal(Path(path).read_text(encoding="utf-8").rstrip(), "json")]
        profile, resources = SizingProfile.load(Path(path)), machine(self.options)
        settings = SizingSettings.load(environ={"NOW_LMS_WSGI_SERVER": "gunicorn"})
        settings = settings.measured_by(profile)
        costs = profile.costs_for("gunicorn")
        advice = advise(costs, settings, resources, "gunicorn")
        lines = [
            *format.table(profile),
            f"Plan with this profile: {compute_plan(settings, resources)}",
            *format.recommendation(advice, costs, resources.cpus),
        ]
        command = "$ NOW_LMS_WSGI_SERVER=gunicorn flask workersize measure"
        return [literal("\n".join([command, *lines]))]


class Changelog(SphinxDirective):
    """CHANGES.md: headings, and lists with one sentence each."""

    def run(self) -> list[nodes.Node]:
        """Turn the little Markdown that is used there into reStructuredText."""
        path = Path(self.env.srcdir).parent / "CHANGES.md"
        self.env.note_dependency(str(path))
        lines: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            text = re.sub(r"`([^`]+)`", r"``\1``", line)
            if text.startswith("## "):
                title = text.removeprefix("## ")
                lines += [title, "-" * len(title)]
            elif not text.startswith("# "):
                lines.append(text)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    for name, directive in {
        "dry-run": DryRun,
        "guide-case": GuideCase,
        "settings-table": SettingsTable,
        "settings-reference": SettingsReference,
        "changelog": Changelog,
        "check-rules": CheckRules,
        "command-help": CommandHelp,
        "plan-command": PlanCommand,
        "capacity-report": Report,
        "capacity-fields": ReportFields,
        "capacity-schema": ReportSchema,
        "capacity-metrics": Metrics,
        "measured": Measured,
    }.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
