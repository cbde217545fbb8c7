"""Directives for what the docs take from the code when they are built.

``command`` runs commands of the package on a machine that the page describes; the others are
tables of what the package declares. Whole files that come from the code (reports, pictures) are
written by ``python -m tests.docs_files`` and held by tests/test_docs.py.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable
from contextlib import chdir
from textwrap import wrap
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from flask_workersize import (
    CapacityReport,
    HostFacts,
    Resources,
    SizingSettings,
    WorkerSizing,
    detect_resources,
)
from flask_workersize.app_state import get_state
from flask_workersize.cli import serve_prod
from flask_workersize.cli.format import shown
from flask_workersize.export.check.table import RULES, Rule
from flask_workersize.health.metrics import render
from flask_workersize.health.report import WorkerReport
from flask_workersize.runtime.queue_times import BOUNDS_SECONDS, QueueTotals
from flask_workersize.sizing.settings import NAMES
from flask_workersize.sizing.sources import GUNICORN_ARGS, config_key, options_key
from tests.resources.machines import FixtureFiles

logger = logging.getLogger(__name__)

MB = 1024 * 1024
HELD_MB = 50
"""What the app of the docs holds when it is loaded, on whichever machine they are built."""

GROUPS = "/sys/fs/cgroup"


class Command(SphinxDirective):
    """What each line of the content prints, in a folder with the files of the docs.

    ``:cpus:`` and ``:memory-mb:`` describe the machine, ``:group:`` is the control group
    of the process, ``:limits:`` are lines of ``/lms.slice/memory.max: 536870912``, and ``:config:``
    is ``app.config`` as JSON. ``:show: line`` shows the start line and warnings of ``serve-prod``,
    ``:show: messages`` warnings and notes. ``:last: 2`` keeps the last lines, ``:wrap: 86`` breaks
    lines that are longer, and ``:code:`` is the language of output that is shown by itself.
    """

    has_content = True
    option_spec: ClassVar = {
        "cpus": float,
        "memory-mb": directives.positive_int,
        "group": directives.path,
        "limits": directives.unchanged,
        "config": json.loads,
        "show": lambda value: directives.choice(value, ("line", "messages")),
        "last": directives.positive_int,
        "wrap": directives.positive_int,
        "code": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """Run every line of the content."""
        text = "\n\n".join(self._session(line) for line in self.content if line.strip())
        return [nodes.literal_block(text, text, language=self.options.get("code", "console"))]

    def _machine(self) -> Resources:
        cpus, memory = self.options.get("cpus", 4), self.options.get("memory-mb", 2048) * MB
        if "limits" not in self.options:
            return Resources(cpus, "host", None, memory, memory, "host", None)
        texts = {
            "/proc/self/cgroup": f"0::{self.options.get('group', '/')}\n",
            "/proc/self/mountinfo": f"30 23 0:26 / {GROUPS} rw - cgroup2 cgroup2 rw\n",
        }
        for line in self.options["limits"].splitlines():
            name, _, text = line.partition(":")
            texts[f"{GROUPS}{name.strip()}"] = f"{text.strip()}\n"
        host = HostFacts(int(cpus), int(cpus), memory, memory, "linux")
        return detect_resources(host, FixtureFiles(texts))

    def _session(self, line: str) -> str:
        words = shlex.split(line)
        start = words.index("flask")
        unset = {name for names in NAMES.values() for name in names.variables} | {GUNICORN_ARGS}
        environ = dict.fromkeys(unset) | dict(word.split("=", 1) for word in words[:start])
        app = Flask("lms")
        app.config.update(self.options.get("config", {}))
        WorkerSizing(app)
        get_state(app).resources = self._machine()
        get_state(app).held_bytes = HELD_MB * MB
        show = self.options.get("show", "all")
        args = words[start + 1 :] + ["--dry-run"] * (show != "all")
        with chdir(self.env.srcdir):
            done = app.test_cli_runner().invoke(
                args=args, env=environ, prog_name="flask", terminal_width=80
            )
        if done.exception and not isinstance(done.exception, SystemExit):
            logger.warning("%s: %r", line, done.exception, location=self.get_location())
        return "\n".join(([] if "code" in self.options else [f"$ {line}"]) + self._cut(done.output))

    def _cut(self, output: str) -> list[str]:
        rows = output.rstrip().splitlines()
        if "show" in self.options:
            is_line = self.options["show"] == "line"
            pattern = r"Error: |Warning: " if is_line else r"Warning: |Note: "
            rows = rows[:is_line] + [row for row in rows[is_line:] if re.match(pattern, row)]
            if not rows:
                logger.warning("nothing is left to show", location=self.get_location())
        if "wrap" in self.options:
            width = self.options["wrap"]
            rows = [part for row in rows for part in wrap(row, width, subsequent_indent="    ")]
        last = self.options.get("last", len(rows))
        return rows if last >= len(rows) else ["...", *rows[-last:]]


def escape(text: str) -> str:
    """Return plain text as reStructuredText."""
    return re.sub(r"([*`|_\\])", r"\\\1", text)


def sentence(text: str) -> str:
    """Return a description of the code as a sentence."""
    return escape(f"{text[:1].upper()}{text[1:]}.")


def settings_table() -> Iterable[list[str]]:
    """Yield the names and the default of every setting."""
    yield ["Setting", "Variables, the preferred one first", "Default"]
    for name, names in NAMES.items():
        variables = ", ".join(f":envvar:`{variable}`" for variable in names.variables)
        yield [f"`{name}`", variables, default(name)]


def default(name: str) -> str:
    """Return the default of a setting, or what happens without a value."""
    value = SizingSettings.model_fields[name].default
    without = {
        "health_host": "the app's",
        "sizing_profile": "the one in the instance folder, if any",
        "workers": "calculated",
        "threads": "calculated for waitress, 1 for gunicorn",
        "bind": "host:port",
    }
    return without.get(name, "none") if value is None else shown(name, value)


def fields(model: type[CapacityReport | WorkerReport]) -> Iterable[list[str]]:
    """Yield the fields of a report."""
    yield ["Field", "Meaning"]
    for name, field in model.model_fields.items():
        if not field.exclude:
            yield [f"`{name}`", sentence(field.description or "")]


def metrics() -> Iterable[list[str]]:
    """Yield the metrics, from what Prometheus gets for a report in which every figure is known."""
    yield ["Metric", "Type", "Meaning"]
    values: dict[str, Any] = dict.fromkeys(CapacityReport.model_fields, 1)
    labels = dict.fromkeys(("server", "worker_class", "limited_by"), "")
    totals = QueueTotals((0,) * (len(BOUNDS_SECONDS) + 1), 0, 0, 0)
    report = CapacityReport.model_construct(**values | labels | {"queue_totals": totals})
    body, _ = render(report, "")
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            if sample.labels.get("le", "+Inf") == "+Inf":
                yield [f"`{sample.name}`", family.type, escape(family.documentation)]


def rules(is_shown: Callable[[Rule], bool]) -> Iterable[list[str]]:
    """Yield rules of ``flask workersize check``."""
    yield ["What", "Why", "Remedy"]
    for rule in filter(is_shown, RULES):
        yield [escape(text) for text in (f"{rule.what}.", rule.why, rule.remedy)]


TABLES: dict[str, Callable[[], Iterable[list[str]]]] = {
    "settings-table": settings_table,
    "capacity-fields": lambda: fields(CapacityReport),
    "process-fields": lambda: fields(WorkerReport),
    "capacity-metrics": metrics,
    "check-rules": lambda: rules(lambda rule: not rule.is_note),
    "check-notes": lambda: rules(lambda rule: rule.is_note),
}


class Table(SphinxDirective):
    """A table of what the package declares; ``:widths:`` as in ``list-table``."""

    option_spec: ClassVar = {"widths": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Make the table that has the name of the directive."""
        widths = self.options.get("widths", "auto")
        lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
        for row in TABLES[self.name]():
            lines += [f"   {' ' if i else '*'} - {cell}" for i, cell in enumerate(row)]
        return self.parse_text_to_nodes("\n".join(lines))


class SettingsReference(SphinxDirective):
    """Every setting with all its names."""

    def run(self) -> list[nodes.Node]:
        """Make an entry for each setting."""
        options = {param.name: param.opts[0] for param in serve_prod.params}
        lines = []
        for name, names in NAMES.items():
            first, *others = names.variables
            lines += [f".. envvar:: {first}", *(f"             {other}" for other in others), ""]
            lines += [f"   {sentence(SizingSettings.model_fields[name].description or '')}", ""]
            in_server = [
                f"``{options_key(server)}[{key!r}]``" for server, key in names.server_option.items()
            ]
            facts = {
                "Option": f"``{options[name]}``" if name in options else "",
                "In app.config": f"``{config_key(name)}``",
                "In GUNICORN_CMD_ARGS": ", ".join(f"``{flag}``" for flag in names.gunicorn_flags),
                "In options of a server": ", ".join(in_server),
                "Default": default(name),
            }
            lines += [f"   :{fact}: {value}" for fact, value in facts.items() if value] + [""]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("command", Command)
    app.add_directive("settings-reference", SettingsReference)
    for name in TABLES:
        app.add_directive(name, Table)
    return {"parallel_read_safe": True}
