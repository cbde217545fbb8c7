"""flask workersize check: with an app, without one, and what it cannot read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from flask_workersize import WorkerSizing
from tests.plain import clear_environment, new_app
from tests.servers.serving import clean_environ

MANIFEST = """\
services:
  web:
    command: flask serve-prod
    environment: {NOW_LMS_WSGI_SERVER: gunicorn}
    stop_grace_period: 60s
    deploy: {resources: {limits: {memory: 150M}}}
"""
APP = "from flask import Flask\napp = Flask('shop')\n"
SIZED = APP + (
    "from flask_workersize import WorkerSizing\n"
    "app.config['WORKERSIZE_WORKER_MEMORY_MB'] = 5\n"
    "WorkerSizing(app)\n"
)


@pytest.fixture(autouse=True)
def _manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)
    (tmp_path / "compose.yaml").write_text(MANIFEST)


def run(*arguments: str, given: bytes = b"") -> Result:
    """Run the command in this process, for an app whose workers need 200 MB."""
    app = new_app()
    WorkerSizing(app)
    return app.test_cli_runner().invoke(args=["workersize", "check", *arguments], input=given)


def check(
    folder: Path, *arguments: str, given: bytes = b"", app: str | None = None
) -> tuple[int, list[str], list[str]]:
    """Run the command in a folder; return its status, and the lines of both outputs."""
    named = ["--app", app] if app else []
    done = subprocess.run(
        [sys.executable, "-m", "flask", *named, "workersize", "check", *arguments],
        cwd=folder,
        env=clean_environ({}),
        input=given,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode().splitlines()


def test_manifests_are_checked_in_a_folder_without_an_app(tmp_path: Path) -> None:
    status, lines, errors = check(tmp_path, "compose.yaml")
    assert (status, errors) == (1, [])
    assert lines[0].startswith("compose.yaml:6: web has 150 MB for a plan that needs 1 × 200 = ")
    assert lines[1:] == ["1 finding, 0 notes; 1 file checked, without an app."]


@pytest.mark.parametrize(
    "text",
    [
        APP,
        "raise ImportError('no fastapi')\n",
        "raise KeyError('DATABASE_URL')\n",
        "raise SystemExit('no database')\n",
        "x = 1\n",
    ],
)
def test_an_app_in_the_folder_that_is_none_of_ours_is_no_trouble(tmp_path: Path, text: str) -> None:
    (tmp_path / "app.py").write_text(text)
    status, lines, errors = check(tmp_path, "-", given=MANIFEST.encode())
    assert (status, len(lines), errors) == (1, 2, [])
    assert lines[-1].endswith("without an app.")


def test_the_plan_of_the_app_counts_if_there_is_one(tmp_path: Path) -> None:
    """Of which a worker needs 5 MB."""
    (tmp_path / "app.py").write_text(SIZED)
    assert check(tmp_path, "compose.yaml") == (0, ["Nothing found, 0 notes; 1 file checked."], [])


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("nope", "Error: Could not import 'nope'."),
        ("other", "Error: The app 'shop' does not use flask-workersize. Call WorkerSizing(app)"),
    ],
)
def test_an_app_that_is_named_has_to_be_there(tmp_path: Path, app: str, says: str) -> None:
    (tmp_path / "other.py").write_text(APP)
    status, lines, errors = check(tmp_path, "compose.yaml", app=app)
    assert (status, lines, len(errors)) == (2, [], 1)
    assert errors[0].startswith(says)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"", "Standard input is empty: the command before the pipe printed nothing."),
        (b" \n\n", "Standard input is empty: the command before the pipe printed nothing."),
        (b"\0\1\2", "Standard input is not UTF-8 text."),
        (MANIFEST.encode("utf-16"), "Standard input is not UTF-8 text."),
        (MANIFEST.encode("latin-1") + b"# \xe4", "Standard input is not UTF-8 text."),
        (b"#" * 10 * 1024 * 1024, "Standard input is larger than 4 MB."),
        (MANIFEST.encode() + b"\tx: 1\n", "<stdin> is not valid YAML in line 7."),
    ],
)
def test_what_cannot_be_read_is_one_line(given: bytes, says: str) -> None:
    done = run("-", given=given)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(f"Error: {says}")


@pytest.mark.parametrize("name", ["folder", "nothing.yaml", "not readable"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    # As root any file can be read, but not what is not there.
    (tmp_path / "not readable").symlink_to("/proc/self/mem")
    done = run(str(tmp_path / name))
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert " cannot be read (" in done.stderr


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("\n", "\r"), ("services", "\ufeffservices")])
def test_line_ends_and_marks_of_other_editors_change_nothing(change: tuple[str, str]) -> None:
    plain = run("-", given=MANIFEST.encode())
    assert run("-", given=MANIFEST.replace(*change).encode()).stdout == plain.stdout
    assert plain.stdout.startswith("<stdin>:6: web has 150 MB")


def test_a_file_that_is_named_twice_is_checked_once(tmp_path: Path) -> None:
    assert run("-", "-", given=MANIFEST.encode()).stdout.endswith(", 0 notes; 1 file checked.\n")
    files = [tmp_path / "a\nb.yaml", tmp_path / "a?b.yaml"]
    for file in files:
        file.write_text(MANIFEST)
    lines = run(*map(str, files)).stdout.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "2 findings, 0 notes; 2 files checked."
