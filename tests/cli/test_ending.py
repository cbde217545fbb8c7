"""Commands that a test runs return, and leave the end of its process alone."""

from __future__ import annotations

import threading

import pytest
from flask import Flask

from flask_workersize import WorkerSizing
from tests.plain import clear_environment


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["workersize", "plan"], 0),
        (["workersize", "plan", "--no-such"], 2),
        (["workersize", "measure"], 2),
        (["workersize", "doctor"], 1),
        (["serve-prod", "--dry-run"], 0),
    ],
)
def test_command_under_the_runner_returns(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int
) -> None:
    clear_environment(monkeypatch)
    at_the_end = threading._shutdown  # type: ignore[attr-defined]
    app = Flask("lms")
    WorkerSizing(app)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert app.test_cli_runner().invoke(args=arguments).exit_code == status
        assert threading._shutdown is at_the_end  # type: ignore[attr-defined]
        assert thread.is_alive()
    finally:
        done.set()
        thread.join()
