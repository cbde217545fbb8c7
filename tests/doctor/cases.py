"""Apps to look at, in this process and from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask

from flask_workersize import WorkerSizing
from flask_workersize.doctor.finding import Case, Finding
from tests.plain import VARIABLES

WORKERS = 4


def case(app: Flask, preload: bool = True) -> Case:
    """Return what a check is handed."""
    return Case(app, preload, WORKERS)


def sized(**config: Any) -> Flask:
    """Return an app with the extension."""
    app = Flask("lms")
    app.config.update(config)
    WorkerSizing(app)
    return app


def levels(check: Callable[[Case], Iterable[Finding]], looked_at: Case) -> list[str]:
    """Return the levels of what a check finds, and hold each finding to what it has to be."""
    found = list(check(looked_at))
    for finding in found:
        assert str(finding) == f"{finding.what} {finding.remedy}"
        assert len(str(finding).splitlines()) == 1
        assert finding.what.endswith(".")
        assert finding.remedy.endswith(".")
    return [finding.level for finding in found]


@dataclass(frozen=True)
class Told:
    """What the command said: its exit status, its lines, and all that it wrote."""

    status: int
    lines: list[str]
    all: str

    def about(self, word: str) -> list[str]:
        """Return the findings that name something."""
        return [line for line in self.lines[:-1] if word in line]


def doctor(folder: Path, code: str, app: str = "hello", **environ: str) -> Told:
    """Run ``flask --app hello workersize doctor`` on a module with that code."""
    (folder / "hello.py").write_text(code)
    done = flask(folder, "--app", app, "workersize", "doctor", **environ)
    return Told(done.returncode, done.stdout.splitlines(), done.stdout + done.stderr)


def flask(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Flask in a folder, with the settings of the keywords alone."""
    unset = {*VARIABLES, "FLASK_APP", "FLASK_DEBUG", "SECRET_KEY"}
    env = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-m", "flask", *arguments],
        cwd=folder,
        env=env | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
