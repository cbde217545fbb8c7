"""The lists of commands: what each is for is there in full, at 80 columns."""

from __future__ import annotations

import pytest
from click.testing import Result
from flask import Flask
from flask.cli import FlaskGroup

from flask_workersize import WorkerSizing
from flask_workersize.cli import serve_prod, workersize

COMMANDS = {"serve-prod": serve_prod, "workersize": workersize, **workersize.commands}
WIDTH = 80


def run(*arguments: str) -> Result:
    """Run a command as ``flask`` does."""
    app = Flask("lms")
    WorkerSizing(app)
    group = FlaskGroup(create_app=lambda: app, add_default_commands=False)
    return app.test_cli_runner().invoke(group, arguments, terminal_width=WIDTH)


def first_sentence(name: str) -> str:
    text = " ".join((COMMANDS[name].help or "").partition("\n\n")[0].split())
    assert text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("arguments", "names"),
    [(["--help"], ["serve-prod", "workersize"]), (["workersize", "--help"], workersize.commands)],
)
def test_list_of_commands_cuts_nothing(arguments: list[str], names: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 0
    listed = done.stdout.partition("Commands:\n")[2]
    for name in names:
        lines = [line for line in listed.splitlines() if line.split()[:1] == [name]]
        assert [line.split(maxsplit=1)[1] for line in lines] == [first_sentence(name)]
    assert "..." not in listed
    assert max(map(len, done.stdout.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", workersize.commands)
def test_help_of_a_command_fits(name: str) -> None:
    done = run("workersize", name, "--help")
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= WIDTH
