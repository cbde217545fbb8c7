"""The rules of the house, held by reading the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import flask_workersize
from flask_workersize.sizing.settings import CONFIG_KEYS, NAMES

PACKAGE = "flask_workersize"
ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))
SETTINGS_PAGE = ROOT / "docs" / "settings.rst"
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.rst"))]
OTHERS = {"now-lms.rst"}
"""Pages that tell of variables which NOW LMS itself reads."""

FOREIGN = {"NOW_LMS_FORCE_HTTPS"}
"""Variables that NOW LMS itself reads, where another page has to tell of them."""

GENERATED_TABLE = ".. settings-table::"
"""A directive of the docs that writes the table from the code."""

MISSPELLED = "WORKERSIZE_TREADS"
"""What the docs show as an example of a name that is refused."""

PUBLIC = [
    "CapacityReport",
    "HostFacts",
    "Resources",
    "SizingPlan",
    "SizingSettings",
    "WorkerSizeConfigError",
    "WorkerSizing",
    "calculate_optimal_workers",
    "compute_plan",
    "detect_resources",
    "get_plan",
    "get_worker_config_from_env",
    "serve",
    "worker_forked",
]
ORDER = [
    "flask_workersize",
    "extension",
    "gunicorn_conf",
    "cli",
    "export",
    "doctor",
    "measure",
    "servers",
    "app_state",
    "health",
    "monitor",
    "compat",
    "runtime",
    "sizing",
    "resources",
    "log",
    "errors",
]
"""The rooms from the top down: each imports only what stands below it."""

PLAIN = ["sizing", "resources", "monitor"]
"""Rooms that know neither a framework nor a server."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, at_once: bool = False) -> Iterator[str]:
    """Yield the full name of everything that a module imports.

    :param at_once: only what it imports when it is imported itself, else wherever it does
    """
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def files(*patterns: str) -> list[Path]:
    return sorted({path for item in patterns for path in (ROOT / PACKAGE).glob(item)})


def modules() -> Iterator[ModuleType]:
    """Import every module but the one that plans when it is imported."""
    yield flask_workersize
    for info in pkgutil.walk_packages(flask_workersize.__path__, f"{PACKAGE}."):
        if not info.name.endswith("gunicorn_conf"):
            yield importlib.import_module(info.name)


def public_things() -> Iterator[tuple[str, Any]]:
    """Yield every public class, function and method that the package defines."""
    for module in modules():
        for name, thing in vars(module).items():
            is_ours = getattr(thing, "__module__", None) == module.__name__
            if name.startswith("_") or not is_ours:
                continue
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield f"{module.__name__}.{name}", thing
            if inspect.isclass(thing):
                yield from (
                    (f"{module.__name__}.{name}.{member}", value)
                    for member, value in vars(thing).items()
                    if not member.startswith("_")
                    and isinstance(value, property | classmethod | staticmethod | FunctionType)
                )


def test_imports_are_found_in_every_form() -> None:
    """The rules below would hold of nothing, were this not so."""
    found = set(imported(ROOT / PACKAGE / "servers" / "waitress" / "run.py"))
    assert {"waitress.server.create_server", "logging", "waitress.wasyncore"} <= found
    assert {f"{PACKAGE}.log.say_if_read", f"{PACKAGE}.servers.systemd"} <= found
    assert f"{PACKAGE}.runtime.deployment.Deployment" in found
    assert f"{PACKAGE}.health.report.CapacityReport" in set(
        imported(ROOT / PACKAGE / "__init__.py")
    )


def room_of(module: str) -> str:
    """Return the first part below the package; the package itself is a room, too."""
    return module.removeprefix(PACKAGE).strip(".").partition(".")[0] or PACKAGE


def arrows() -> dict[str, set[str]]:
    """Return the modules of the package that each module imports, wherever it does."""
    known = {module_name(path): path for path in SOURCES}
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        names = [name for name in imported(path) if within(name, PACKAGE)]
        targets = {name if name in known else name.rpartition(".")[0] for name in names}
        found[module] = targets & known.keys() - {module}
    return found


def imported_with(module: str) -> set[str]:
    """Return the modules of the package that are imported when this one is."""
    paths = {module_name(path): path for path in SOURCES}
    found, left = set(), {module}
    while left:
        found |= left
        names = {name for item in left for name in imported(paths[item], at_once=True)}
        left = ({*names, *(name.rpartition(".")[0] for name in names)} & paths.keys()) - found
    return found


def test_every_room_stands_in_the_order() -> None:
    assert {room_of(module_name(path)) for path in SOURCES} == set(ORDER)


def test_no_arrow_points_back_up() -> None:
    """Imports for type checking and inside functions included."""
    back = [
        f"{module} imports {target}"
        for module, targets in arrows().items()
        for target in targets
        if ORDER.index(room_of(module)) > ORDER.index(room_of(target))
    ]
    assert back == []


def test_no_circle() -> None:
    """Not between two modules, nor through any number of them."""
    try:
        order = list(TopologicalSorter(arrows()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) == len(SOURCES)


@pytest.mark.parametrize("room", PLAIN)
def test_plain_rooms_know_no_framework_and_no_server(room: str) -> None:
    forbidden = ("flask", "click", "werkzeug", "gunicorn", "waitress")
    paths = files(f"{room}/**/*.py")
    assert paths
    for path in paths:
        assert [n for n in imported(path) if any(within(n, part) for part in forbidden)] == [], path


def test_only_servers_know_gunicorn_and_waitress() -> None:
    for path in SOURCES:
        if room_of(module_name(path)) != "servers":
            names = [n for n in imported(path) if n.partition(".")[0] in ("gunicorn", "waitress")]
            assert names == [], path


def test_only_the_metrics_know_prometheus_client_and_they_are_imported_when_they_are_asked() -> (
    None
):
    """An app without the extra loses the metrics, and nothing else."""
    knowing = {path.name for path in SOURCES if any(map(is_prometheus, imported(path)))}
    assert knowing == {"metrics.py"}
    metrics = f"{PACKAGE}.health.metrics"
    for path in SOURCES:
        at_once = [name for name in imported(path, at_once=True) if within(name, metrics)]
        assert at_once == [], path


def test_page_is_imported_when_it_is_asked_for() -> None:
    """A server whose report nobody opens in a browser needs no template."""
    page = f"{PACKAGE}.health.page"
    for path in SOURCES:
        assert [name for name in imported(path, at_once=True) if within(name, page)] == [], path


def test_exports_are_imported_when_they_are_asked_for() -> None:
    """A server that starts has no use for templates."""
    exports = f"{PACKAGE}.export"
    knowing = {
        module_name(path)
        for path in SOURCES
        if room_of(module_name(path)) != "export"
        and any(within(name, exports) for name in imported(path, at_once=True))
    }
    # Themselves imported by their commands alone.
    assert knowing == {f"{PACKAGE}.cli.check", f"{PACKAGE}.cli.fleet"}
    loaded = imported_with(f"{PACKAGE}.cli")
    assert f"{PACKAGE}.cli.replicas" in loaded
    assert loaded & knowing == set()


def test_only_one_module_knows_yaml_and_it_is_imported_for_a_file_that_is_yaml() -> None:
    """Units and files of balancers are checked without the extra."""
    knowing = {path.name for path in SOURCES if "yaml" in imported(path)}
    assert knowing == {"nodes.py"}
    assert [path for path in SOURCES if "yaml" in imported(path, at_once=True)] == []


def is_prometheus(name: str) -> bool:
    return within(name, "prometheus_client")


def test_public_names_are_those_of_the_architecture_and_sorted() -> None:
    assert flask_workersize.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC
    assert all(hasattr(flask_workersize, name) for name in PUBLIC)


def test_everything_public_has_a_docstring() -> None:
    things = dict(public_things())
    assert f"{PACKAGE}.sizing.plan.SizingPlan.to_dict" in things
    assert f"{PACKAGE}.sizing.plan.SizingPlan.reason" in things
    assert f"{PACKAGE}.resources.host.HostFacts.read" in things
    assert [name for name, thing in things.items() if not inspect.getdoc(thing)] == []
    assert [module.__name__ for module in modules() if not module.__doc__] == []


def known_variables() -> set[str]:
    return {variable for names in NAMES.values() for variable in names.variables}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_names_that_the_code_mentions_are_known(path: Path) -> None:
    """Messages and docstrings tell people to set these."""
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"NOW_LMS_[A-Z_]*[A-Z]", text)) <= known_variables()
    assert set(re.findall(r"WORKERSIZE_[A-Z_]*[A-Z]", text)) <= CONFIG_KEYS


def test_table_of_settings_has_every_name() -> None:
    text = SETTINGS_PAGE.read_text(encoding="utf-8")
    if GENERATED_TABLE not in text:
        assert known_variables() <= set(re.findall(r"[A-Z][A-Z_]+", text))


@pytest.mark.parametrize(
    "path", [page for page in PAGES if page.name not in OTHERS], ids=lambda path: path.name
)
def test_pages_mention_no_name_that_is_not_known(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    mentioned = set(re.findall(r"\b(?:NOW_LMS|WORKERSIZE)_[A-Z_]*[A-Z]", text))
    assert mentioned <= known_variables() | CONFIG_KEYS | {MISSPELLED} | FOREIGN
