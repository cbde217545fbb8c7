"""What the docs say of the code and its tests: each name and path that they mention is there."""

from __future__ import annotations

import ast
import csv
import re
from pathlib import Path
from typing import cast

import pytest

from flask_workersize.sizing.validators import ServerName
from tests.docs_files import FILES
from tests.plain import plan
from tests.test_house import ORDER, PACKAGE, ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.rst"))
FOLDERS = [ROOT, ROOT / PACKAGE, DOCS]
"""What a path in the docs may be relative to."""

TESTS = sorted((ROOT / "tests").rglob("*.py"))
LITERAL = re.compile(r"``([\w.-][\w./-]*\.py)(?:::(\w+))?``")
"""A file, and with ``::`` something that it defines."""


def defined(path: Path) -> set[str]:
    """Return the names of the functions, classes and variables of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def found(path: str) -> Path | None:
    return next((folder / path for folder in FOLDERS if (folder / path).is_file()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_mentioned_is_there(page: Path) -> None:
    mentioned = set(re.findall(r"\btest_\w+", page.read_text(encoding="utf-8")))
    if mentioned:
        known = {name for path in TESTS for name in (path.stem, *defined(path))}
        assert mentioned - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_code_that_is_mentioned_is_there(page: Path) -> None:
    """A bare ``app.py`` may be the reader's; one in a folder, or with ``::``, is ours."""
    for name, thing in LITERAL.findall(page.read_text(encoding="utf-8")):
        if "/" not in name and not thing:
            continue
        path = found(name)
        assert path is not None, name
        assert not thing or thing in defined(path), f"{name}::{thing}"


def test_rooms_are_listed_in_their_order() -> None:
    text = (DOCS / "how-it-works.rst").read_text(encoding="utf-8")
    assert re.findall(r"^    ``(\w+)``, ", text.partition("\nRooms\n")[2], re.M) == ORDER


def units() -> list[str]:
    """Return every unit in the docs that starts a server, with what belongs to its block."""
    blocks = [
        block
        for page in PAGES
        for block in re.findall(
            r"^\.\. code-block:: ini\n((?:[ ].*\n|\n)+)", page.read_text(encoding="utf-8"), re.M
        )
    ]
    return [block for block in blocks if re.search(r"ExecStart=.* serve-prod", block)]


def test_units_go_on_after_the_kill_of_one_worker() -> None:
    """By default systemd stops the whole unit (systemd.service(5), ``OOMPolicy=``)."""
    assert units()
    assert all("OOMPolicy=continue" in unit for unit in units())


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_docs_are_what_the_code_gives(name: str) -> None:
    """After a change that is meant: ``python -m tests.docs_files``."""
    assert (DOCS / name).read_text(encoding="utf-8") == FILES[name]()


@pytest.mark.parametrize("name", FILES)
def test_files_from_the_code_are_shown(name: str) -> None:
    assert any(
        f":: {name}\n" in page.read_text() or f":file: {name}\n" in page.read_text()
        for page in PAGES
    )


with (DOCS / "guide.csv").open(encoding="utf-8") as file:
    GUIDE = list(csv.DictReader(file))


@pytest.mark.parametrize("row", GUIDE, ids=lambda row: f"{row['Example']}, {row['Server']}")
def test_sizes_beside_those_of_the_guide_are_calculated(row: dict[str, str]) -> None:
    cpus, memory = map(int, re.findall(r"\d+", row["Machine"]))
    environ = dict(word.split("=") for word in re.findall(r"\w+=\w+", row["Variables"]))
    found = plan(environ, cpus, memory, cast(ServerName, row["Server"]))
    size = f"{found.workers} × {found.threads}, {found.estimated_memory_mb} MB"
    assert row["Workers × threads"] == size


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "benchmarks").glob("*.py")), ids=lambda path: path.stem
)
def test_every_benchmark_is_described(path: Path) -> None:
    """``open_loop`` is the load of another one."""
    if path.stem not in ("__init__", "open_loop"):
        page = (DOCS / "benchmarks.rst").read_text(encoding="utf-8")
        assert re.search(rf"python -m tests\.benchmarks\.{path.stem}\b", page)
