"""Lines of a terminal: pieces with a style, fitted to a width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

Piece = tuple[str, str]
"""A text and its style."""

Line = list[Piece]

_STYLES = {"bold": "1", "dim": "2", "bad": "31", "good": "32", "warn": "33"}

BARS = "▁▂▃▄▅▆▇█"
"""From an idle minute to a busy one."""

_ASCII = str.maketrans("▁▂▃▄▅▆▇█░■□●×·→−…", "_.-:=+*#.#.*x|>-~")

LEAST_WIDTH = 20
"""On a narrower terminal the lines are cut by the terminal itself."""

LABEL_WIDTH = 9
_GAP = 3


class Look(NamedTuple):
    """How a terminal shows lines: its width in columns, and what it can do."""

    width: int = 80
    has_colour: bool = False
    is_ascii: bool = False

    @property
    def room(self) -> int:
        """Columns beside the labels."""
        return max(self.width, LEAST_WIDTH) - LABEL_WIDTH


def can_show(encoding: str | None) -> bool:
    """Return whether an encoding has the characters of the bars and boxes."""
    try:
        f"{BARS}░■□●×·→−…".encode(encoding or "ascii")
    except (LookupError, UnicodeError):
        return False
    return True


def drawn(lines: Iterable[Line], look: Look) -> list[str]:
    """Return lines as text, none wider than the terminal; with escapes only if it has colours."""
    return [_drawn(line, look) for line in lines]


def _drawn(line: Line, look: Look) -> str:
    width = max(look.width, LEAST_WIDTH)
    if sum(len(text) for text, _ in line) > width:
        line = _cut(line, width)
    runs = groupby(line, itemgetter(1))
    return "".join(_styled("".join(text for text, _ in run), style, look) for style, run in runs)


def _cut(line: Line, width: int) -> Line:
    """Return the beginning of a line, with dots at its end."""
    kept: Line = []
    left = width - 1
    for text, style in line:
        kept.append((text[:left], style))
        left -= len(kept[-1][0])
    return [*kept, ("…", "")]


def _styled(text: str, style: str, look: Look) -> str:
    if look.is_ascii:
        text = text.translate(_ASCII).encode("ascii", "replace").decode()
    if not (look.has_colour and style and text):
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def flow(
    label: str, pieces: Sequence[Piece], look: Look, gap: int = _GAP, most: int = 3
) -> Iterable[Line]:
    """Yield the lines of a part: its label, then its pieces, on as many lines as they need.

    :param label: what stands in front of the first line
    :param pieces: none of them is broken; one that is wider than the room is cut
    :param gap: columns between two pieces
    :param most: how many lines there may be; the last one ends with dots if that is too few
    """
    lines: list[Line] = [[]]
    used = 0
    for text, style in pieces:
        if lines[-1] and used + gap + len(text) > look.room:
            if len(lines) == most:
                lines[-1].append((" …", ""))
                break
            lines.append([])
            used = 0
        if lines[-1]:
            lines[-1].append((" " * gap, style if style == lines[-1][-1][1] else ""))
            used += gap
        lines[-1].append((text, style))
        used += len(text)
    for number, line in enumerate(lines):
        yield [((label if number == 0 else "").ljust(LABEL_WIDTH), "dim"), *line]


def sentences(
    label: str, texts: Iterable[Sequence[Piece]], look: Look, most: int = 4
) -> Iterable[Line]:
    """Yield texts that are broken between words, the label in front of the first one."""
    for number, pieces in enumerate(texts):
        yield from flow("" if number else label, pieces, look, gap=1, most=most)


def words(text: str, style: str = "") -> list[Piece]:
    """Return the words of a sentence as pieces."""
    return [(word, style) for word in text.split()]
