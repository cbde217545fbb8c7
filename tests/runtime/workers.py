"""Workers without a server: they are in the scoreboard, and wait for a signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from flask_workersize.runtime.scoreboard import Scoreboard
from tests.servers.serving import await_that

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def serving_worker(board: Scoreboard, age: int, obeys: bool = True) -> Callable[[], None]:
    """Return what a worker does: it enters its row, and lives until a signal ends it."""
    row = board.allocate(age)
    assert row is not None

    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if obeys else signal.SIG_IGN)
        row.enter()
        row.set_ready()
        while True:
            signal.pause()

    return work


def await_ready(board: Scoreboard, count: int) -> None:
    await_that(lambda: len(board.read().ready) == count, f"{count} workers are ready")
