"""Console sessions of README and docs: what is typed, what is shown, and what is really printed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from flask import Flask

from flask_workersize import CapacityReport, Resources, SizingSettings, WorkerSizing, compute_plan
from flask_workersize.app_state import get_plan, get_state
from flask_workersize.cli.top.format import screen
from flask_workersize.cli.top.layout import Look
from flask_workersize.cli.top.values import Answer
from tests.cli.reports import NOW, REPORT
from tests.docs_files import measured
from tests.plain import MB, VARIABLES

ROOT = Path(__file__).parents[1]
CUT = "..."
"""What stands in an output for anything that is left out."""

MACHINE = Resources(2, "host", None, 24105 * MB, 23596 * MB, "host", None)
"""The machine whose outputs README and quickstart show: 2 CPUs and 24 GB."""

HELD_MB = 50
"""What the loaded app holds there."""

_FENCED = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"^\.\. code-block:: console\n\n((?:    .*\n|\n)+)", re.M)
_CAPTIONED = re.compile(r"^\.\. code-block:: \w+\n    :caption: (\S+)\n\n((?:    .*\n|\n)+)", re.M)


@dataclass(frozen=True)
class Session:
    """One command and the output that is shown below it.

    :param environ: the variables that are typed before it
    :param words: the command itself
    :param shown: the output, with ``...`` for what is left out; empty if none is shown
    """

    environ: dict[str, str]
    words: list[str]
    shown: str

    @classmethod
    def of(cls, line: str, shown: str) -> Self:
        """Split a command line as a shell does."""
        words = shlex.split(line)
        environ = {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environ[name] = value
        return cls(environ, words, shown.strip("\n"))

    def __str__(self) -> str:
        return " ".join([*(f"{name}={value}" for name, value in self.environ.items()), *self.words])

    @property
    def is_server(self) -> bool:
        """Whether the command goes on until it is stopped."""
        serves = self.words[0] == "python" or "serve-prod" in self.words
        return serves and "--dry-run" not in self.words


def sessions(text: str) -> list[Session]:
    """Return what is typed on a page, in its order."""
    blocks = [*_FENCED.findall(text), *map(_outdented, _INDENTED.findall(text))]
    return [
        Session.of(*part.split("\n", 1))
        for block in blocks
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]
    ]


def files(text: str) -> dict[str, str]:
    """Return the files of a page by their captions."""
    return {name: _outdented(block).strip("\n") + "\n" for name, block in _CAPTIONED.findall(text)}


def _outdented(block: str) -> str:
    return re.sub(r"^    ", "", block, flags=re.M)


def is_shown(shown: str, printed: str) -> bool:
    """Return whether an output is what was printed, but for what is left out."""
    pattern = ".*".join(re.escape(part) for part in shown.strip("\n").split(CUT))
    return re.fullmatch(pattern, printed.strip("\n"), re.S) is not None


def without_figures(text: str) -> str:
    """Return an output without what differs from machine to machine, or is counted."""
    text = re.sub(r"\(.*\), about", "(...), about", text)
    return re.sub(r"\d[\d.:]*", "N", re.sub(r"\b(CPU|worker|thread)s\b", r"\1", text))


def printed(session: Session) -> str:
    """Return what a command prints on the machine of the docs, as far as that is the same always.

    :raises LookupError: for a command that is not known
    """
    if "measure" in session.words:
        return measured().partition("\n")[2]
    if "top" in session.words:
        lines = screen([Answer(session.words[-1], REPORT)], Look(), NOW)
        return "\n".join(line.rstrip() for line in lines)
    if session.words[0] == "curl":
        return CapacityReport.of(get_plan(app_of_the_docs()), serving=True).to_json()
    arguments = session.words[3:] if session.words[0] == "flask" else ["serve-prod"]
    if session.words[0] == "python" or session.is_server:
        plan_line = run([*arguments, "--dry-run"], session.environ).partition("\n")[0]
        return f"{plan_line}\n" + ("" if "gunicorn" in plan_line else f"Serving on http://{ANY}\n")
    return run(arguments, session.environ)


ANY = "0.0.0.0:8080"
"""Where a server listens that was told nothing."""


def app_of_the_docs() -> Flask:
    """Return an app on the machine of the docs, without a profile."""
    app = Flask("example_app", instance_path=str(ROOT / "no-instance"))
    WorkerSizing(app)
    state = get_state(app)
    state.resources, state.held_bytes = MACHINE, HELD_MB * MB
    state.plan = compute_plan(SizingSettings.load(environ={}), MACHINE)
    return app


def run(arguments: list[str], environ: dict[str, str]) -> str:
    """Return what a command prints there."""
    unset: dict[str, str | None] = dict.fromkeys(VARIABLES)
    done = app_of_the_docs().test_cli_runner().invoke(args=arguments, env=unset | environ)
    assert done.exit_code == 0, done.output
    return done.output


@cache
def texts() -> list[re.Pattern[str]]:
    """Return every text with fields that the monitor may log, as a pattern of its fields."""
    strings = (
        node
        for path in sorted((ROOT / "flask_workersize" / "monitor").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr)
    )
    return [re.compile("".join(_parts(string))) for string in strings]


def _parts(string: ast.JoinedStr) -> Iterator[str]:
    for value in string.values:
        yield re.escape(str(value.value)) if isinstance(value, ast.Constant) else "(.*?)"


def may_be_logged(line: str) -> bool:
    """Return whether a line is one of these texts, its fields numbers or such texts themselves."""
    return any(
        all(re.fullmatch(r"[\d.]*", field) or may_be_logged(field) for field in match.groups())
        for pattern in texts()
        if any(part.isalpha() for part in pattern.pattern.replace("(.*?)", ""))
        if (match := pattern.fullmatch(line)) and line not in match.groups()
    )
