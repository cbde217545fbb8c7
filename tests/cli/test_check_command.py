"""flask workersize check: what it reads and prints, and its exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from flask_workersize import WorkerSizing
from flask_workersize.app_state import get_state
from flask_workersize.export.render import TARGETS
from tests.export.intents import asked, profile
from tests.plain import MB, clear_environment, new_app

MANIFESTS = Path(__file__).parents[1] / "export" / "manifests"


@pytest.fixture(autouse=True)
def _only_what_a_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


def run(*arguments: str, command: str = "check", text: str | None = None) -> Result:
    """Run a command for an app that holds 50 MB."""
    app = new_app()
    WorkerSizing(app)
    get_state(app).held_bytes = 50 * MB
    return app.test_cli_runner().invoke(args=["workersize", command, *arguments], input=text)


def refused(*arguments: str, text: str | None = None) -> str:
    done = run(*arguments, text=text)
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.rstrip("\n").isprintable()
    return done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_that_was_exported_has_status_0(target: str, tmp_path: Path) -> None:
    size = ["--memory", "700M", "-o", str(tmp_path)]
    assert run(target, *size, command="export").exit_code == 0
    done = run(*map(str, tmp_path.iterdir()))
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("Nothing found, ")


def test_findings_are_lines_and_have_status_1() -> None:
    stack = str(MANIFESTS / "stack.yml")
    done = run(stack)
    assert (done.exit_code, done.stderr) == (1, "")
    note, dropped, _, last = done.stdout.splitlines()
    assert note.startswith(f"{stack}:6: note: lms pins its workers (WEB_CONCURRENCY). ")
    assert dropped == (
        f"{stack}:10: lms has tmpfs: in a stack. docker stack deploy silently drops it. "
        "Write it as a volume: {type: tmpfs, target: /tmp}."
    )
    assert last == "2 findings, 1 note; 1 file checked."


def test_what_is_rendered_is_read_from_standard_input_and_notes_alone_have_status_0() -> None:
    text = (MANIFESTS / "stack.yml").read_text().replace("tmpfs: /tmp", "tmpfs: []")
    done = run("-", text=text.replace("read_only: true", "").partition("  small:")[0])
    assert done.exit_code == 0
    first, last = done.stdout.splitlines()
    assert first.startswith("<stdin>:6: note: ")
    assert last == "Nothing found, 1 note; 1 file checked."


def test_json_has_every_part_of_a_finding() -> None:
    done = run("--json", str(MANIFESTS / "stack.yml"))
    assert done.exit_code == 1
    note, dropped, _ = json.loads(done.stdout)
    assert note["is_note"]
    assert list(dropped) == ["rule", "file", "line", "what", "why", "remedy", "is_note"]
    assert (dropped["rule"], dropped["line"]) == ("stack-tmpfs", 10)


def test_what_the_app_is_known_to_need_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 MB, or with a profile 80 + 17 MB."""
    small = str(MANIFESTS / "stack.yml")
    assert "a plan that needs 50 + 1 × 200 = 250 MB (assumed, not measured)" in run(small).stdout
    measured = asked(profile())
    monkeypatch.setattr("flask_workersize.cli.check.prepare", lambda _: (measured, None))
    assert "memory" not in run(small).stdout


def test_pools_of_the_app_are_counted() -> None:
    """Those of a server; SQLite has none, and NullPool keeps none."""
    engines = [
        create_engine("mysql+pymysql://127.0.0.1/a", pool_size=2, max_overflow=1),
        create_engine("mysql+pymysql://127.0.0.1/b", pool_size=4, max_overflow=0),
        create_engine("mysql+pymysql://127.0.0.1/c", poolclass=NullPool),
        create_engine("sqlite://"),
    ]
    stack = str(MANIFESTS / "stack.yml")
    assert "database" not in run("--db-connections", "42", stack).stdout
    said = run("--db-connections", "41", stack).stdout
    assert "lms can open 3 replicas × 2 workers × 7 = 42 connections, and there are 41." in said
    assert len(engines) == 4


def test_escapes_in_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J.yaml"
    path.write_text('services: {"\\e[31mweb": {image: a, mem_limit: "1\\u0007"}}')
    done = run(str(path))
    assert done.exit_code == 1
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "?[31mweb" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.yaml", None, "cannot be read (No such file or directory)"),
        ("a\x1b.yaml", None, "a?.yaml cannot be read"),
        ("zero\0.yaml", None, "cannot be read (not a valid name)"),
        (".", None, "cannot be read (Is a directory)"),
        ("latin.yaml", b"name: caf\xe9", "is not UTF-8 text"),
        ("image.png", b"\x89PNG\r\n\x1a\n\x00", "is not UTF-8 text"),
        ("large.yaml", b"a" * (4 * 2**20 + 1), "is larger than 4 MB"),
        ("broken.yaml", b"{{ if .Values }}\nb: 1", "is not valid YAML in line 2"),
        ("tab.yaml", b"a:\n\tb: 1", "is not valid YAML in line 2"),
        ("bell.yaml", b"a: \x07", "is not valid YAML in line 1"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    name: str, content: bytes | None, says: str, tmp_path: Path
) -> None:
    path = f"{tmp_path}/{name}"
    if content is not None:
        Path(path).write_bytes(content)
    assert says in refused(str(MANIFESTS / "stack.yml"), path)


@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5", "²", "9" * 10])
def test_connections_are_a_whole_number(number: str) -> None:
    said = refused("--db-connections", number, "-", text="")
    assert said.startswith("Error: --db-connections is not a whole number of at least 1")


def test_without_the_extra_yaml_is_one_line_and_the_rest_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    said = refused(str(MANIFESTS / "stack.yml"))
    assert said.endswith(
        "stack.yml is YAML, and PyYAML is missing: pip install 'flask-workersize[check]'.\n"
    )
    for name in ("lms.service", "haproxy.cfg", "nginx.conf"):
        assert run(str(MANIFESTS / name)).exit_code == 1
