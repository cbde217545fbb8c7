"""What manifests say, with the line that says it; numbers by one strict parser."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...sizing.plan import MB


class Place(NamedTuple):
    """A line in a file; the first one is 1."""

    file: str
    line: int


class Value(NamedTuple):
    """A text and its place; the text may come from elsewhere, and is not known then."""

    text: str
    place: Place
    is_known: bool = True

    @property
    def is_on(self) -> bool:
        """Whether it is a switch that is on."""
        return self.text.lower() in ("true", "yes", "on", "1")


class Amount(NamedTuple):
    """A number with a unit.

    :param value: in bytes, CPUs, seconds or a count; ``None`` if it is not known here
    :param text: as it is written
    :param place: where
    :param is_wrong: whether it is none at all
    """

    value: float | None
    text: str
    place: Place
    is_wrong: bool = False


Parser = Callable[[str], float | None]

_BINARY = {letter: 1024.0**power for power, letter in enumerate("KMGTPE", 1)}
_DECIMAL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3}
_KUBERNETES = (
    _DECIMAL
    | {letter: 1000.0**power for power, letter in enumerate("MGTPE", 2)}
    | {f"{letter}i": factor for letter, factor in _BINARY.items()}
)
_SYSTEMD = {"": 1.0, **_BINARY}
_DOCKER = {"": 1.0, "b": 1.0} | {
    letter.lower() + end: factor for letter, factor in _BINARY.items() for end in ("", "b", "ib")
}
_SECONDS = (
    dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0)
    | dict.fromkeys(("m", "min", "minute", "minutes"), 60.0)
    | dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0)
    | {"ms": 1e-3, "msec": 1e-3, "us": 1e-6, "usec": 1e-6, "d": 86400.0}
)
_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
_PART = re.compile(_NUMBER + r"\s*([a-z]*)\s*")


def _quantity(text: str, units: Mapping[str, float]) -> float | None:
    match = re.fullmatch(_NUMBER + r"([A-Za-z]*)", text)
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def kubernetes(text: str) -> float | None:
    """Return a quantity of Kubernetes; "1 core" and "512 MB" are none."""
    exponent = re.fullmatch(_NUMBER + r"[eE]([+-]?[0-9]{1,2})", text)
    if exponent:
        return float(exponent[1]) * 10.0 ** int(exponent[2])
    return _quantity(text, _KUBERNETES)


def kubernetes_memory(text: str) -> float | None:
    """Return the same for memory, which is never less than 1 MB: 512m is half a byte."""
    size = kubernetes(text)
    return size if size is None or size >= MB or size == 0 else None


def docker(text: str) -> float | None:
    """Return a size of Docker, in bytes."""
    return _quantity(text.lower().replace(" ", "", 1), _DOCKER)


def systemd(text: str) -> float | None:
    """Return a size of systemd, in bytes."""
    return math.inf if text == "infinity" else _quantity(text, _SYSTEMD)


def number(text: str) -> float | None:
    """Return a number without a unit."""
    return _quantity(text, {"": 1.0})


def count(text: str) -> float | None:
    """Return a whole number that is not below 0, as an amount."""
    return whole(text)


def whole(text: str) -> int | None:
    """Return a whole number that is not below 0."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def percent(text: str) -> float | None:
    """Return a share that is written in %."""
    return _quantity(text.removesuffix("%"), {"": 0.01}) if text.endswith("%") else None


def seconds(text: str) -> float | None:
    """Return a time of Compose or systemd, such as 1m30s, "2min 3s" or 90, in seconds."""
    if text == "infinity":
        return math.inf
    parts = _PART.findall(text)
    if _PART.sub("", text) or not parts or any(unit not in _SECONDS for _, unit in parts):
        return None
    return sum(float(count) * _SECONDS[unit] for count, unit in parts)


def amount(value: Value | None, parse: Parser) -> Amount | None:
    """Return what a value amounts to; ``None`` if nothing is set.

    What a variable of the shell brings is not known, nor is a share of an unknown whole.
    """
    if value is None:
        return None
    if not value.is_known or "$" in value.text:
        return Amount(None, value.text, value.place)
    found = parse(value.text.strip())
    if found is None and parse is systemd and percent(value.text) is not None:
        return Amount(None, value.text, value.place)
    return Amount(found, value.text, value.place, found is None)
