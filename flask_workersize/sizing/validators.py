"""The validators of the settings, and their error messages."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from ..errors import WorkerSizeConfigError
from .sources import QUOTES, is_quoted

MOST_PROCESSES = 10_000
"""Largest number of workers, and of threads: anything more is a typing error."""

YEAR_SECONDS = 365 * 24 * 3600
"""Longest timeout, in seconds; 0 is for never."""

_SWITCH = {"true": "on", "1": "on", "yes": "on", "false": "off", "0": "off", "no": "off"}


def refusal(problem: str) -> PydanticCustomError:
    """Return an error for a validator to raise, without the value."""
    return PydanticCustomError("refused", "{problem}", {"problem": problem})


def _whole_number(value: Any) -> Any:
    """Accept whole numbers only; pydantic would also accept "4.0" and ``True``."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
        return int(value)
    raise refusal("is not a whole number")


def _number(value: Any) -> Any:
    """Accept numbers, with or without a fraction."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{0,18}\.?[0-9]{1,18}", value.strip()):
        return float(value)
    raise refusal("is not a number")


def _whole_number_or_auto(value: Any) -> Any:
    is_auto = isinstance(value, str) and value.strip().lower() == "auto"
    return None if value is None or is_auto else _whole_number(value)


def _word(value: Any) -> Any:
    """Return a word in lower case; a switch has many names."""
    if not isinstance(value, str | bool):
        return value
    word = str(value).lower()
    return _SWITCH.get(word, word)


def _listed(value: Any) -> Any:
    """Split a text at its commas; ``GUNICORN_CMD_ARGS`` and config give sequences of texts."""
    if value is None:
        return None
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise refusal("is not a text, or a list of texts")
    return tuple(part.strip() for item in items for part in item.split(",") if part.strip()) or None


_ADDRESS = re.compile(
    r"""unix:(?P<path>.+)|(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s\[\]:/'"]*)(?::(?P<port>[0-9]{1,5}))?"""
)


def _addresses(value: Any) -> Any:
    value = _listed(value)
    for item in value or ():
        match = _ADDRESS.fullmatch(item)
        if match is None or item.isdigit() or int(match["port"] or 0) > 65535:
            raise refusal("is not a list of addresses")
    return value


def _networks(value: Any) -> Any:
    value = _listed(value)
    try:
        for item in value or ():
            if item != "*":
                ip_network(item)
    except ValueError:
        raise refusal("is not a list of IP addresses or networks") from None
    return value


def _is_path(text: str) -> bool:
    """Return whether a file could have this name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _profile_choice(value: Any) -> Any:
    """Accept a path, "off" or "learn"."""
    if _word(value) in ("off", "learn"):
        return _word(value)
    if value is not None and (not isinstance(value, str) or not _is_path(value)):
        raise refusal('is not a path, "off" or "learn"')
    return value


ServerName = Literal["gunicorn", "waitress"]

_WHOLE = BeforeValidator(_whole_number)

Positive = Annotated[int, Field(ge=1), _WHOLE]
CountOrAuto = Annotated[
    int | None, Field(ge=1, le=MOST_PROCESSES), BeforeValidator(_whole_number_or_auto)
]
Percent = Annotated[int, Field(ge=0, le=99), _WHOLE]
RecyclePercent = Annotated[int, Field(ge=1, le=89), _WHOLE]
Seconds = Annotated[int, Field(ge=0, le=YEAR_SECONDS), _WHOLE]
Patience = Annotated[float, Field(gt=0, le=YEAR_SECONDS), BeforeValidator(_number)]
Port = Annotated[int, Field(ge=0, le=65535), _WHOLE]
Server = Annotated[ServerName, BeforeValidator(_word)]
Guard = Annotated[Literal["on", "off", "exit"], BeforeValidator(_word)]
ProfileChoice = Annotated[str | None, BeforeValidator(_profile_choice)]
Sizing = Annotated[Literal["guide", "adaptive"], BeforeValidator(_word)]
Host = Annotated[str, Field(pattern=r"""^[^\s/'"]+$""")]
Addresses = Annotated[tuple[str, ...] | None, BeforeValidator(_addresses)]
Networks = Annotated[tuple[str, ...] | None, BeforeValidator(_networks)]

_PROBLEMS = {
    "greater_than_equal": "is too small",
    "greater_than": "is too small",
    "less_than_equal": "is too large",
    "literal_error": "is not a known value",
    "bool_parsing": 'is neither "on" nor "off"',
    "bool_type": 'is neither "on" nor "off"',
    "string_type": "is not a text",
    "string_pattern_mismatch": "is not an address",
}


def explain(
    error: ValidationError, fields: Mapping[str, FieldInfo], sources: Mapping[str, str]
) -> WorkerSizeConfigError:
    """Turn pydantic's first error into one line with the name of the setting, without its value."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return WorkerSizeConfigError(first["ctx"]["problem"])
    name = str(first["loc"][0])
    if name not in fields:
        return unknown(f"There is no setting {name!r}", name, fields)
    context = first.get("ctx", {})
    problem = context.get("problem") or _PROBLEMS.get(first["type"], "is not valid")
    if first["type"] == "less_than_equal":
        problem += f", at most {context['le']}"
    line = f"{sources.get(name, name)} {problem} ({fields[name].description})."
    return WorkerSizeConfigError(f"{line} {QUOTES}" if is_quoted(first["input"]) else line)


def unknown(problem: str, name: str, known: Iterable[str]) -> WorkerSizeConfigError:
    """Return the error for an unknown name."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
    return WorkerSizeConfigError(f"{problem}: did you mean {near[0]!r}?")
