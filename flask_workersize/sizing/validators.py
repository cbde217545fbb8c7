"""What a value has to look like, and what is said of one that does not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from ..errors import WorkerSizeConfigError


def refusal(problem: str) -> PydanticCustomError:
    """Return the error for a validator to raise; the value stays unsaid."""
    return PydanticCustomError("refused", "{problem}", {"problem": problem})


def _whole_number(value: Any) -> Any:
    """Accept what is written as a whole number; pydantic would take "4.0" and ``True`` too."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
        return int(value)
    raise refusal("is not a whole number")


def _whole_number_or_auto(value: Any) -> Any:
    is_auto = isinstance(value, str) and value.strip().lower() == "auto"
    return None if is_auto else _whole_number(value)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """Split a text at its commas; ``GUNICORN_CMD_ARGS`` and config give sequences of texts."""
    if isinstance(value, str):
        value = [value]
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise refusal("is not a text, or a list of texts")
    return tuple(part.strip() for item in value for part in item.split(",") if part.strip()) or None


_ADDRESS = re.compile(
    r"unix:(?P<path>.+)|(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s\[\]:/]*)(?::(?P<port>[0-9]{1,5}))?"
)


def _addresses(value: Any) -> Any:
    value = _listed(value)
    for item in value or ():
        match = _ADDRESS.fullmatch(item)
        if match is None or item.isdigit() or int(match["port"] or 0) > 65535:
            raise refusal("is not a list of addresses")
    return value


def _host(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[^\s/]+", value):
        raise refusal("is not an address")
    return value


def _networks(value: Any) -> Any:
    value = _listed(value)
    for item in value or ():
        if item != "*":
            try:
                ip_network(item)
            except ValueError:
                raise refusal("is not a list of IP addresses or networks") from None
    return value


def _guard(value: Any) -> Any:
    """Accept what a switch is called everywhere, too; pydantic would refuse "true"."""
    text = str(value).strip().lower() if isinstance(value, str | bool) else ""
    names = {"true": "on", "1": "on", "yes": "on", "false": "off", "0": "off", "no": "off"}
    if text in ("on", "off", "exit") or text in names:
        return names.get(text, text)
    raise refusal('is not "on", "off" or "exit"')


def _megabytes_or_percent(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,2}|100)\s*%", value.strip())):
        if int(match[1]):
            return f"{int(match[1])}%"
        raise refusal("is too small")
    number = _whole_number(value)
    if number is not None and number < 1:
        raise refusal("is too small")
    return number


def profile_choice(value: Any) -> str | None:
    """Accept a path, or a word for none or for learning."""
    if value is None or value is False:
        return None if value is None else "off"
    if not isinstance(value, str) or "\0" in value:
        raise refusal('is not a path, "off" or "learn"')
    word = {"false": "off", "0": "off", "no": "off"}.get(value.lower(), value.lower())
    return word if word in ("off", "learn") else value


ServerName = Literal["gunicorn", "waitress"]

Whole = Annotated[int, BeforeValidator(_whole_number)]
WholeOrNone = Annotated[int | None, BeforeValidator(_whole_number)]
WholeOrAuto = Annotated[int | None, BeforeValidator(_whole_number_or_auto)]
Server = Annotated[ServerName, BeforeValidator(_lower)]
Guard = Annotated[Literal["on", "off", "exit"], BeforeValidator(_guard)]
MegabytesOrPercent = Annotated[int | str | None, BeforeValidator(_megabytes_or_percent)]
ProfileChoice = Annotated[str | None, BeforeValidator(profile_choice)]
Host = Annotated[str, BeforeValidator(_host)]
HostOrNone = Annotated[str | None, BeforeValidator(_host)]
Addresses = Annotated[tuple[str, ...] | None, BeforeValidator(_addresses)]
Networks = Annotated[tuple[str, ...] | None, BeforeValidator(_networks)]

_PROBLEMS = {
    "greater_than_equal": "is too small",
    "less_than_equal": "is too large",
    "literal_error": "is not a known server",
    "bool_parsing": 'is neither "on" nor "off"',
    "bool_type": 'is neither "on" nor "off"',
    "string_type": "is not a text",
}


def explain(
    error: ValidationError, fields: Mapping[str, FieldInfo], sources: Mapping[str, str]
) -> WorkerSizeConfigError:
    """Turn pydantic's error into one line that names what was set, and shows no value.

    :param error: the error; what it says of the first value is told
    :param fields: the settings, by name
    :param sources: the name that each was set under
    """
    first = error.errors(include_input=False, include_url=False)[0]
    if not first["loc"]:
        return WorkerSizeConfigError(first["ctx"]["problem"])
    name = str(first["loc"][0])
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1, cutoff=0)
        return WorkerSizeConfigError(f"There is no setting {name!r}: did you mean {near[0]!r}?")
    field = fields[name]
    source = sources.get(name, name)
    problem = first.get("ctx", {}).get("problem") or _PROBLEMS.get(first["type"], "is not valid")
    example = field.examples[0] if field.examples else field.default
    return WorkerSizeConfigError(
        f"{source} {problem} ({field.description}). Correct it, for example to {example}, or "
        "remove it."
    )
