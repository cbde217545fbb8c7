"""What a server has answered, read with care: nothing of it is sure, not even its types."""

from __future__ import annotations

import math
import time
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

from ...errors import printable

_MOST_CHARACTERS = 400
"""What is shown of a text."""

_MOST_NUMBER = 1e12
"""A larger number is none that this command knows."""


class Answer(NamedTuple):
    """What came from an address: the report, or why there is none."""

    url: str
    report: Mapping[str, object] | None
    problem: str = ""


class Told:
    """A JSON object from outside: what is missing or of another type counts as not there."""

    def __init__(self, value: object) -> None:
        self._values: Mapping[str, object] = value if isinstance(value, dict) else {}

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def number(self, name: str) -> float | None:
        """Return a number of 0 or more."""
        return number(self._values.get(name))

    def text(self, name: str) -> str:
        """Return a text, fit to be shown; empty if there is none."""
        value = self._values.get(name)
        return plain(value) if isinstance(value, str) else ""

    def is_true(self, name: str) -> bool:
        """Return whether a flag is set."""
        return self._values.get(name) is True

    def items(self, name: str) -> list[object]:
        """Return a list."""
        value = self._values.get(name)
        return value if isinstance(value, list) else []

    def texts(self, name: str) -> list[str]:
        """Return the texts of a list."""
        return [plain(item) for item in self.items(name) if isinstance(item, str)]

    def object(self, name: str) -> Told:
        """Return an object within this one."""
        return Told(self._values.get(name))

    def objects(self, name: str) -> list[Told]:
        """Return the objects of a list."""
        return [Told(item) for item in self.items(name) if isinstance(item, dict)]


def number(value: object) -> float | None:
    """Return a value if it is a number that can be one of ours: 0 or more, and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < _MOST_NUMBER else None


def plain(text: str) -> str:
    """Return a text as one line of characters that are each one column wide.

    What a terminal would act on, draw over another character or in two columns, becomes a question
    mark. A long text is cut.
    """
    return "".join(char if _is_plain(char) else "?" for char in printable(text[:_MOST_CHARACTERS]))


def _is_plain(char: str) -> bool:
    is_narrow = unicodedata.east_asian_width(char) not in ("W", "F")
    # Above the first plane are emoji, whose width depends on the terminal.
    return is_narrow and char <= "\uffff" and unicodedata.category(char)[0] != "M"


def count(value: float | None) -> str:
    """Return a number without decimals."""
    return "?" if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Return a number with a decimal if it is small."""
    return count(value) if value is None or value >= 10 else f"{value:.1f}"


def share(part: float, whole: float) -> float:
    """Return a part of a whole, 0 to 1."""
    return min(part / whole, 1.0) if whole else 0.0


def span(seconds: float | None) -> str:
    """Return a time in one unit, such as "12 ms" or "2 d"."""
    if seconds is None:
        return "?"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < length * most:
            return f"{math.floor(seconds / length)} {unit}"
    return f"{math.floor(seconds / 86400):,} d"


def moment(at: float | None, now: float) -> str:
    """Return a time in the local zone; the day, too, if it is another one.

    :param at: seconds since 1970
    :param now: the same, now
    """
    try:
        then, today = time.localtime(at or 0), time.localtime(now)
        is_today = then[:3] == today[:3]
        return time.strftime("%H:%M" if is_today else "%d %b %H:%M", then) if at else "--:--"
    except (OverflowError, OSError, ValueError):
        return "--:--"
