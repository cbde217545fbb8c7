"""What the pages for operators quote is what the code writes, and what they have typed works."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import psutil
import pytest
from pydantic import BaseModel
from werkzeug.test import Client

from flask_workersize import CapacityReport, calculate_optimal_workers
from flask_workersize.cli import serve_prod, workersize
from flask_workersize.export.render import render
from flask_workersize.health.report import PlanReport, WorkerReport
from flask_workersize.sizing.plan import compute_plan
from flask_workersize.sizing.settings import NAMES, SizingSettings
from tests.export.intents import FIXED
from tests.plain import MB, VARIABLES, clear_environment, load, resources
from tests.servers.serving import refused_here
from tests.test_snippets import ROOT, Snippet, probe_app, snippets

gunicorn_config = pytest.importorskip("gunicorn.config", exc_type=ImportError)

from flask_workersize.servers.gunicorn.options import _NOT_HERE, gunicorn_options  # noqa: E402

DOCS = ROOT / "docs"

FOREIGN = {
    "FLASK_APP",
    "MALLOC_ARENA_MAX",
    "PYTHONFAULTHANDLER",
}
"""Variables of others that the pages set."""

OF_NOW_LMS = {"now-lms.rst"}
"""Pages whose commands set variables of NOW LMS, too."""


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def captioned(name: str, caption: str) -> str:
    """Return the snippet of a page with this caption."""
    (found,) = [each.text for each in snippets_of(name) if each.caption == caption]
    return found


def snippets_of(name: str) -> list[Snippet]:
    languages = ("bash", "console", "ini", "nginx", "python", "text", "yaml")
    return [each for each in snippets(*languages) if each.page == name]


# Lines of logs

WRITERS = {
    "flask-workersize": "flask_workersize",
    "gunicorn": "gunicorn",
    "waitress": "waitress",
    "SQLAlchemy": "sqlalchemy",
}
"""Who writes a line, by the caption of its block, and the package with its text."""

OTHER_WRITERS = {"Kubernetes", "nginx", "PostgreSQL"}
"""Those whose text is not here to be compared."""

FILLED = re.compile(r"%0?\.?\d*[a-z]|\{[^{}]*\}")


@cache
def templates(package: str) -> list[list[str]]:
    """Return every text of a package, cut where a value is filled in."""
    spec = __import__(package)
    assert spec.__file__ is not None
    found = []
    for path in sorted(Path(spec.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.JoinedStr):
                texts = [
                    str(part.value) if isinstance(part, ast.Constant) else "\0"
                    for part in node.values
                ]
                found.append(re.split(r"\0", "".join(texts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(FILLED.split(node.value))
    return [parts for parts in found if sum(map(len, parts)) >= 5]


def left_of(line: str, package: str) -> str:
    """Return what of a line no text of a package has; what is filled in between counts as found.

    The longest text is taken off first.
    """
    found = sorted(templates(package), key=lambda parts: -sum(map(len, parts)))
    for parts in found:
        pattern = r"(.{1,60}?)".join(map(re.escape, parts))
        if match := re.search(pattern, line):
            kept = " ".join(filter(None, match.groups()))
            line = f"{line[: match.start()]}\0{kept}\0{line[match.end() :]}"
    return line.replace("\0", " ")


def quoted_lines() -> list[tuple[str, str]]:
    return [
        (each.caption, line)
        for each in snippets("text")
        if each.page == "troubleshooting.rst"
        for line in each.text.splitlines()
        if line
    ]


def test_every_quoted_line_names_its_writer() -> None:
    assert {caption for caption, _ in quoted_lines()} == WRITERS.keys() | OTHER_WRITERS


@pytest.mark.parametrize(
    ("writer", "line"), [each for each in quoted_lines() if each[0] in WRITERS]
)
def test_quoted_line_is_written_by_the_code(writer: str, line: str) -> None:
    """Only numbers, names of settings and addresses are not in it."""
    pytest.importorskip(WRITERS[writer])
    left = left_of(re.sub(r"^(Warning|Error): ", "", line), WRITERS[writer])
    words = set(re.findall(r"[A-Za-z]{2,}", re.sub(r"[A-Z]+_[A-Z_]+", "", left)))
    assert words <= {"MB", "SIGKILL", "clients"}, left


def test_a_line_that_nobody_writes_is_found_out() -> None:
    """Or the test above would hold of anything."""
    assert "exhausted" in left_of("memory: worker 4711 exhausted itself", "flask_workersize")


def fields(*models: type[BaseModel]) -> set[str]:
    return {name for model in models for name in model.model_fields}


@pytest.mark.parametrize("name", ["troubleshooting.rst", "limits.rst"])
def test_fields_of_the_report_that_are_mentioned_are_there(name: str) -> None:
    text = page(name)
    others = {"flask_workersize", "message_queue", "pool_size", "max_overflow", "stop_grace_period"}
    others |= {"max_connections", "proxy_read_timeout", "monkey_patch"}
    told = set(re.findall(r"``([a-z]+(?:_[a-z]+)+)``", text))
    assert told - others <= fields(CapacityReport, WorkerReport)


# Commands


def words_of(snippet: Snippet) -> Iterator[list[str]]:
    """Yield each command of a block, in words."""
    prompt = r"[$#] " if snippet.language == "console" else r"(?:[a-z]+: )?"
    text = snippet.text.replace("\\\n", " ")
    if snippet.caption == "PowerShell":
        text = text.replace("\\", "/")
    for line in re.findall(rf"^{prompt}(.*)", text, re.M):
        try:
            yield from split(shlex.split(line, comments=True))
        except ValueError:
            # Python in quotes over several lines.
            continue


def split(words: list[str]) -> Iterator[list[str]]:
    """Cut a line into its commands."""
    command: list[str] = []
    for word in words:
        if word in ("|", "&&", ";", ">", "2>&1"):
            yield command
            command = []
        else:
            command.append(word)
    yield command


def typed() -> list[tuple[Snippet, list[str]]]:
    return [
        (each, words)
        for each in snippets("console", "text")
        if each.language == "console" or each.caption.startswith(("Procfile", "PowerShell"))
        for words in words_of(each)
        if words
    ]


def typed_with(*programs: str) -> pytest.MarkDecorator:
    """Return a parametrization over what is typed after a program, with its variables."""
    cases = []
    for snippet, words in typed():
        for number, word in enumerate(words if words[0] != "ps" else ()):
            if re.split(r"[/\\]", word)[-1] in programs:
                environ = dict(item.split("=", 1) for item in words[:number] if "=" in item)
                cases.append((snippet, environ, words[number + 1 :]))
                break
    assert cases
    return pytest.mark.parametrize(
        ("snippet", "environ", "words"),
        cases,
        ids=[f"{each[0]}-{i}" for i, each in enumerate(cases)],
    )


def check_variables(environ: dict[str, str], name: str) -> None:
    """See that each variable is known, and its value accepted where it is no shell's."""
    if name in OF_NOW_LMS:
        environ = {key: value for key, value in environ.items() if key in VARIABLES}
    assert set(environ) <= {*VARIABLES, *FOREIGN}
    load({key: value for key, value in environ.items() if "$" not in value})


def parse(command: click.Command, words: list[str]) -> dict[str, Any]:
    """Parse options as click does; files need not be there."""
    context = click.Context(command, resilient_parsing=True)
    options, _, _ = command.make_parser(context).parse_args(list(words))
    return options


@typed_with("flask")
def test_command_of_flask_has_the_options_that_are_typed(
    snippet: Snippet, environ: dict[str, str], words: list[str]
) -> None:
    check_variables(environ, snippet.page)
    if "workersize" in words:
        name, *rest = words[words.index("workersize") + 1 :]
        options = parse(workersize.commands[name], rest)
        if "target" in options:
            assert options["target"]
    elif "serve-prod" in words:
        options = parse(serve_prod, words[words.index("serve-prod") + 1 :])
        known = {key: value for key, value in options.items() if key in NAMES and value}
        load(options=known)


@typed_with("gunicorn")
def test_command_of_gunicorn_has_the_options_that_are_typed(
    snippet: Snippet, environ: dict[str, str], words: list[str]
) -> None:
    check_variables(environ, snippet.page)
    gunicorn_config.Config().parser().parse_args(words)


@typed_with("export", "config:set")
def test_variables_that_are_exported_are_known(
    snippet: Snippet, environ: dict[str, str], words: list[str]
) -> None:
    check_variables(dict(word.split("=", 1) for word in words if "=" in word), snippet.page)


def test_variables_of_powershell_are_known() -> None:
    told = re.findall(r'\$env:(\w+) = "(.*)"', captioned("recipes.rst", "PowerShell"))
    assert told
    check_variables(dict(told), "recipes.rst")


@pytest.mark.parametrize(
    "snippet", [each for each in snippets("bash") if each.caption == ".env"], ids=str
)
def test_dotenv_has_settings_that_are_accepted(snippet: Snippet) -> None:
    check_variables(dict(line.split("=", 1) for line in snippet.text.split()), snippet.page)


# Python


@pytest.mark.parametrize("snippet", snippets("python"), ids=str)
def test_python_can_be_read(snippet: Snippet) -> None:
    ast.parse(inspect.cleandoc(snippet.text))


def options_in(snippet: Snippet) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what a snippet sets of the further options of a server."""
    for node in ast.walk(ast.parse(inspect.cleandoc(snippet.text))):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Subscript):
            continue
        key = node.targets[0].slice
        if isinstance(key, ast.Constant) and str(key.value).startswith("WORKERSIZE_"):
            source = compile(ast.Expression(node.value), "snippet", "eval")
            yield str(key.value), eval(source, {})


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the module that hooks are named of."""
    module = ModuleType("hooks")
    module.post_fork = lambda server, worker: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hooks", module)


@pytest.mark.parametrize("snippet", snippets("python"), ids=str)
def test_options_of_a_server_are_accepted(snippet: Snippet, hooks: None) -> None:
    from flask_workersize.servers.waitress.options import waitress_options

    for key, value in options_in(snippet):
        settings = load(config={key: value})
        plan = compute_plan(settings, resources(), "gunicorn")
        if key == "WORKERSIZE_GUNICORN_OPTIONS":
            # The user and the group are not on this machine.
            here = {name: item for name, item in value.items() if name not in ("user", "group")}
            gunicorn_options({key: here}, settings, plan)
        elif key == "WORKERSIZE_WAITRESS_OPTIONS":
            waitress_options({key: value}, settings, plan)


# Moving


def dotenvs() -> list[str]:
    return [each.text for each in snippets_of("moving.rst") if each.caption == ".env"]


def dotenv(text: str) -> SizingSettings:
    return load(dict(line.split("=", 1) for line in text.split()))


def test_gunicorn_gets_the_same_as_from_its_file(hooks: None) -> None:
    known = gunicorn_config.Config().settings
    names: dict[str, Any] = {}
    exec(captioned("moving.rst", "gunicorn.conf.py, before"), names)
    before = {key: value for key, value in names.items() if key in known}
    assert len(before) > 9
    _, environ = dotenvs()
    settings = dotenv(environ)
    (snippet,) = [each for each in snippets_of("moving.rst") if each.caption == "hello.py"]
    config = dict(options_in(snippet))
    plan = compute_plan(settings, resources(cpus=os.cpu_count() or 1, memory_mb=1e6), "gunicorn")
    after = gunicorn_options(config, settings, plan)
    after["bind"] = ",".join(settings.addresses)
    # The guide's number is divided by the threads.
    assert after["workers"] == max(1, before.pop("workers") // after["threads"])
    assert settings.trusted_proxy == (before.pop("forwarded_allow_ips"),)
    assert callable(before.pop("post_fork"))
    assert {key: after[key] for key in before} == before


def test_table_of_gunicorns_settings_is_that_of_the_code() -> None:
    table = page("moving.rst").partition(".. list-table:: gunicorn's settings")[2]
    rows = re.findall(r"    \* - (.*?)\n      - (.*?)(?=\n    \* - |\n\n)", table, re.S)
    named = {key: right for left, right in rows for key in re.findall(r"``(\w+)``", left)}
    known = gunicorn_config.Config().settings
    assert set(named) <= known.keys()
    ours = {
        names.server_option["gunicorn"]: names.variables[0]
        for names in NAMES.values()
        if "gunicorn" in names.server_option
    }
    assert all(variable in named[key] for key, variable in ours.items())
    assert {key for key, right in named.items() if right.startswith("refused")} == set(_NOT_HERE)


def test_options_of_the_guides_script_are_the_defaults() -> None:
    tree = ast.parse(captioned("moving.rst", "run.py, before"))
    (told,) = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "options"
    ]
    settings = load()
    plan = compute_plan(settings, resources(), "gunicorn")
    options = gunicorn_options({}, settings, plan)
    options["bind"] = settings.addresses[0]
    names = {"workers": plan.workers, "threads": plan.threads}
    before = eval(compile(ast.Expression(told), "snippet", "eval"), names)
    assert {key: options[key] for key in before} == before


@pytest.mark.parametrize(("cpus", "memory_mb"), [(1, 700), (4, 1024), (8, 1e6), (64, 1e6)])
def test_settings_give_the_number_that_the_call_gave(
    monkeypatch: pytest.MonkeyPatch, cpus: int, memory_mb: float
) -> None:
    clear_environment(monkeypatch)
    available = type("Memory", (), {"available": int(memory_mb * MB)})
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    names: dict[str, Any] = {"calculate_optimal_workers": calculate_optimal_workers}
    exec(captioned("moving.rst", "before"), names)
    environ, _ = dotenvs()
    plan = compute_plan(dotenv(environ), resources(cpus, memory_mb), "gunicorn")
    assert plan.workers == names["workers"]


def test_procfile_means_the_same() -> None:
    before, after, waitress_before, waitress_after = [
        shlex.split(each.text.partition(": ")[2])
        for each in snippets_of("moving.rst")
        if each.caption.startswith("Procfile")
    ]
    told = vars(gunicorn_config.Config().parser().parse_args(before[1:]))
    options = parse(serve_prod, after[after.index("serve-prod") + 1 :])
    settings = load({"PORT": "5000"}, options={k: v for k, v in options.items() if k in NAMES})
    assert (settings.threads, settings.timeout) == (told["threads"], told["timeout"])
    assert [address.replace("5000", "$PORT") for address in settings.addresses] == told["bind"]
    assert settings.workers is None
    (threads,) = [word.partition("=")[2] for word in waitress_before if "--threads" in word]
    assert waitress_after[-2:] == ["--threads", threads]


# Limits and security


def test_worker_class_is_refused_with_the_line_that_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clear_environment(monkeypatch)
    done = refused_here(["--wsgi-server", "gunicorn"], {}, GUNICORN_CMD_ARGS="-k gevent")
    assert done.status == 2
    assert done.stderr in page("limits.rst").replace("\n    ", "\n")


def test_details_are_those_that_need_the_token() -> None:
    """On the health port, where everyone sees what else is live."""
    row = re.search(r"\* - (``processes``.*)\n      - no\n      - yes\n", page("security.rst"))
    assert row
    plan, now = compute_plan(load(), resources()), probe_app()[1].read()
    reports = [
        CapacityReport.of(plan, serving=True, now=now, details=details).model_fields_set
        for details in (False, True)
    ]
    assert reports[1] - reports[0] == set(re.findall(r"``(\w+)``", row[1]))


def test_public_report_is_the_plan() -> None:
    row = CapacityReport.of(compute_plan(load(), resources()), serving=True)
    assert set(row.model_dump(exclude_unset=True)) <= fields(PlanReport)


def test_headers_are_those_that_are_sent() -> None:
    answer = Client(probe_app()[0]).get("/_health/capacity")
    for line in captioned("security.rst", "report").split("\n"):
        name, _, value = line.partition(": ")
        if name:
            assert answer.headers[name] == value


def test_headers_of_the_page_are_those_that_are_sent() -> None:
    pytest.importorskip("flask_workersize.health.page")
    answer = Client(probe_app()[0]).get("/_health/capacity", headers={"Accept": "text/html"})
    for line in filter(None, captioned("security.rst", "page").split("\n")):
        name, _, value = line.partition(": ")
        assert answer.headers[name] == value


def test_exported_unit_is_as_hardened_as_the_page_says() -> None:
    unit = render("systemd", FIXED["systemd"])["lms.service"]
    for line in ("DynamicUser=yes", "CapabilityBoundingSet=\n", "ProtectSystem=strict"):
        assert line in unit
    assert "AF_NETLINK" in unit
    keys = set(re.findall(r"^(\w+)=", unit, re.M))
    assert not keys & {"ProcSubset", "MemoryHigh"}
    pod = render("kubernetes", FIXED["kubernetes"])["kubernetes.yaml"]
    assert all(text in pod for text in ("runAsUser: 10001", "readOnlyRootFilesystem: true"))
