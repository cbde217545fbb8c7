"""What to set if the plan is too large: one answer that does not contradict itself."""

from __future__ import annotations

import pytest

from flask_workersize.monitor.remedy import KEPT_SECONDS, PEAK_SECONDS, Remedy
from flask_workersize.runtime.scoreboard import Scoreboard
from tests.monitor.observations import worker
from tests.plain import MB, plan

LIMIT = 1000 * MB


def remedy(workers: int = 9, board: Scoreboard | None = None) -> Remedy:
    planned = plan({"NOW_LMS_WORKERS": str(workers)}, memory_mb=900)
    return Remedy(board or Scoreboard(workers, 1), planned, 0.7)


def advised(made: Remedy, others_mb: int = 100, now: float = 0) -> int:
    line = made.advise(now, LIMIT, others_mb * MB)
    return int(line.split("NOW_LMS_WORKERS=")[1].split()[0])


@pytest.mark.parametrize(
    ("own", "others", "fits"),
    [
        ([200, 200, 200], 100, 3),
        ([300, 300, 300], 100, 2),
        ([300, 100, 100], 100, 2),
        ([650], 250, 1),
        ([100], 800, 1),
    ],
)
def test_as_many_fit_as_are_as_large_as_the_largest(own: list[int], others: int, fits: int) -> None:
    """At 70 % of the limit, so that they need not be recycled over and over.

    What is no worker's own, launcher and monitor among it, is taken off before.
    """
    made = remedy()
    made.note(0, [worker(age, size) for age, size in enumerate(own, start=1)])
    assert advised(made, others) == fits


def test_largest_is_remembered_for_a_while() -> None:
    made = remedy()
    made.note(0, [worker(1, 300)])
    made.note(1, [worker(2, 100)])
    assert made.peak_bytes == 300 * MB
    made.note(PEAK_SECONDS + 1, [worker(2, 100)])
    assert made.peak_bytes == 100 * MB


def test_kill_shows_that_there_was_one_too_many() -> None:
    """However small the worker was when it was last measured."""
    made = remedy(4)
    made.note(0, [worker(1, 10)])
    assert advised(made) == 4
    made.note_kill(4)
    assert advised(made, now=1) == 3
    made.note_kill(3)
    assert advised(made, now=2) == 2
    made.note_kill(1)
    assert advised(made, now=3) == 1


def test_two_answers_in_a_minute_are_the_same() -> None:
    """Kernel and guard speak within seconds of each other, of figures that change meanwhile."""
    made = remedy()
    made.note(0, [worker(1, 200)])
    assert advised(made) == 3
    made.note(2, [worker(1, 600)])
    assert advised(made, now=2) == 3
    assert advised(made, now=2 + KEPT_SECONDS) == 1


def test_one_worker_can_only_be_given_more() -> None:
    assert remedy(1).advise(0, LIMIT, 0) == "Give it more memory: it runs one worker already."


def test_answer_is_of_the_workers_that_the_limits_allow_now() -> None:
    """Planned was one; a larger limit has made four of it, and given 3600 MB."""
    board = Scoreboard(1, 1)
    made = remedy(1, board)
    board.for_limits, board.available_mb = 3, 3600
    assert made.advise(0, 4000 * MB, 0) == "Set NOW_LMS_WORKERS=4 or NOW_LMS_WORKER_MEMORY_MB=900."
    board.for_limits = 0
    assert made.advise(1, LIMIT, 0) == "Give it more memory: it runs one worker already."


def test_what_was_one_too_many_is_not_after_the_limit_has_changed() -> None:
    board = Scoreboard(4, 1)
    made = remedy(4, board)
    made.note_kill(4)
    assert advised(made) == 3
    board.for_limits = 4
    assert advised(made, now=1) == 8
    made.note_kill(8)
    assert advised(made, now=2) == 7
