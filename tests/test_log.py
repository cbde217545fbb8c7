"""Every line is seen: by the app's logging, or on standard error."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator

import pytest

from flask_workersize.log import logger, say, shown


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """Return what stands above our logger, without the handlers of pytest."""
    root = logging.Logger("root", logging.INFO)
    monkeypatch.setattr(logger, "parent", root)
    monkeypatch.setattr(logger, "disabled", False)
    yield root
    logging.disable(logging.NOTSET)
    # It remembers what it is enabled for.
    logger._cache.clear()  # type: ignore[attr-defined]


def writing_to(stream: io.StringIO, level: int = logging.NOTSET) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setLevel(level)
    return handler


def test_line_goes_through_the_logging_of_the_app(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    root.addHandler(writing_to(stream))
    say(logging.INFO, "100 % of it")
    assert stream.getvalue() == "100 % of it\n"
    assert capsys.readouterr().err == ""


def closed(root: logging.Logger) -> None:
    stream = io.StringIO()
    root.addHandler(writing_to(stream))
    stream.close()


def disabled(root: logging.Logger) -> None:
    root.addHandler(writing_to(io.StringIO()))
    logger.disabled = True


def all_disabled(root: logging.Logger) -> None:
    root.addHandler(writing_to(io.StringIO()))
    logging.disable(logging.CRITICAL)


def too_high(root: logging.Logger) -> None:
    root.addHandler(writing_to(io.StringIO(), logging.ERROR))


def null(root: logging.Logger) -> None:
    root.addHandler(logging.NullHandler())


def without_handlers(root: logging.Logger) -> None:
    root.handlers = []


@pytest.mark.parametrize(
    "silence", [closed, disabled, all_disabled, too_high, null, without_handlers]
)
def test_line_that_no_handler_takes_goes_to_standard_error(
    root: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    silence: Callable[[logging.Logger], None],
) -> None:
    silence(root)
    say(logging.WARNING, "look here")
    assert capsys.readouterr().err == "Warning: look here\n"


def test_other_log_is_preferred_as_long_as_it_is_heard(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    root.addHandler(writing_to(ours))
    other = logging.Logger("other")
    other.addHandler(writing_to(theirs))
    say(logging.INFO, "one", other)
    other.disabled = True
    say(logging.INFO, "two", other)
    assert (theirs.getvalue(), ours.getvalue()) == ("one\n", "two\n")
    assert capsys.readouterr().err == ""


def test_names_from_outside_stay_on_the_line() -> None:
    assert shown(["a\nb", "c\x1b"]) == '"a?b", "c?"'
    assert shown("abcdefg") == '"a", "b", "c", "d", "e" and 2 more'
