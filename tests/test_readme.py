"""README: its outputs are those of the code, and so are its names and defaults."""

from __future__ import annotations

import json
import re

import pytest
from werkzeug.test import Client

from flask_workersize import SizingSettings
from flask_workersize.cli.format import shown
from flask_workersize.sizing.settings import NAMES
from tests.sessions import ROOT, Session, is_shown, may_be_logged, printed, run, sessions
from tests.test_snippets import probe_app

README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_SCREEN = 45
SESSIONS = [session for session in sessions(README) if session.shown]


def test_first_screen_has_both_commands_the_lines_for_an_app_and_a_start_line() -> None:
    first = "\n".join(README.splitlines()[:FIRST_SCREEN])
    (served,) = re.findall(r"^python3 -m venv .*serve-prod$", first, re.M)
    (tested,) = re.findall(r"^python3 -m venv .*pytest$", README, re.M)
    assert tested in first
    assert "--app example_app" in served
    assert "WorkerSizing(app)" in first
    assert "Serving on http" in first


@pytest.mark.parametrize("session", SESSIONS, ids=str)
def test_output_is_what_the_code_prints(session: Session) -> None:
    if "doctor" in session.words:
        pytest.skip("tests/doctor/test_doctor_command.py holds this one")
    if session.words[0] == "curl" and session.words[1].endswith("/ready"):
        assert session.shown == Client(probe_app()[0]).get("/ready").text
        return
    assert is_shown(session.shown, printed(session)), printed(session)


def test_log_lines_are_those_of_the_code() -> None:
    (block,) = re.findall(r"```text\n(.*?)```", README, re.S)
    lines = block.splitlines()
    assert len(lines) > 1
    for line in lines:
        assert may_be_logged(line.removeprefix("Warning: "))


def rows() -> dict[str, str]:
    """Return the defaults in the table of settings by their variable."""
    table = README.partition("| variable |")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| (NOW_LMS_\w+) \| ([^|]*?) \|", table, re.M))


def test_table_of_settings_has_variables_and_their_defaults() -> None:
    settings = {names.variables[0]: name for name, names in NAMES.items()}
    found = rows()
    assert len(found) >= 6
    for variable, default in found.items():
        value = SizingSettings.model_fields[settings[variable]].default
        name = settings[variable]
        expected = "calculated" if name in ("workers", "threads") else "none"
        assert default == (expected if value is None else shown(name, value).partition(" MB")[0])


def test_commands_that_are_named_are_there() -> None:
    """In ``code`` within the text, too."""
    listed = run(["workersize", "--help"], {}).partition("Commands:")[2]
    known = set(re.findall(r"^  (\w+)", listed, re.M))
    named = set(re.findall(r"\bworkersize (\w+)", README))
    named |= {word for word in re.findall(r"`([a-z]+)`", README) if word in known}
    assert named == known


def test_report_that_is_shown_is_json() -> None:
    for session in SESSIONS:
        if session.words[0] == "curl":
            assert json.loads(session.shown)["status"] == "pass"
