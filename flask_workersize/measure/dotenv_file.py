"""Write settings into a .env file; everything else in it stays, to the byte."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dotenv.parser import parse_stream

from ..errors import WorkerSizeStartError
from ..resources.files import read_regular

_MOST_BYTES = 1024 * 1024

_NAME = re.compile(r"\s*(?:export[^\S\r\n]+)?(?:'[^']+'|[^=#\s]+)")
_EQUALS = re.compile(r"[^\S\r\n]*=[^\S\r\n]*")
_QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1)[^\\])*\1""", re.DOTALL)
_BARE = re.compile(r"(?!(?<=\s)#)(?:(?!\s+#)[^\r\n])*(?<!\s)|")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Set each of these lines in a file: in place if it exists, else at the end.

    A missing file is created, readable only by its owner.

    :param lines: name, "=" and a value that needs no quotes
    :raises WorkerSizeStartError: if the file cannot be read or written
    """
    try:
        try:
            before = read_regular(path, _MOST_BYTES)
        except FileNotFoundError:
            before = b""
        _write(path, before, with_lines(before.decode(), lines).encode())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, UnicodeDecodeError):
            why = "not a text file"
        problem = f"Cannot write the settings to {path.name}: {why}. Copy them by hand."
        raise WorkerSizeStartError(problem) from None


def with_lines(text: str, lines: Iterable[str]) -> str:
    """Return the text of a file with these lines set; its ends of lines, quotes and comments stay.

    :param lines: as for :func:`write_lines`
    """
    # Windows' byte order mark is not part of the first name.
    mark = text[: text.startswith("\ufeff")]
    text = text.removeprefix(mark)
    found = re.search(r"\r\n|\n|\r", text)
    end = found[0] if found else "\n"
    for line in lines:
        name, _, value = line.partition("=")
        items = list(parse_stream(io.StringIO(text)))
        text = "".join(
            _with_value(item.original.string, value) if item.key == name else item.original.string
            for item in items
        )
        if not any(item.key == name for item in items):
            text += (end if text and text[-1] not in "\r\n" else "") + line + end
    return mark + text


def _with_value(setting: str, value: str) -> str:
    """Return a setting, as it is written, with another value."""
    name = _NAME.match(setting)
    assert name is not None  # the parser has found one
    equals = _EQUALS.match(setting, name.end())
    if equals is None:
        rest = setting[name.end() :]
        return f"{name[0]}={value}{' ' if rest.startswith('#') else ''}{rest}"
    old = _QUOTED.match(setting, equals.end()) or _BARE.match(setting, equals.end())
    assert old is not None  # it may be empty
    quote, rest = old[1] if old.re is _QUOTED else "", setting[old.end() :]
    gap = " " if rest.startswith("#") and not quote else ""
    return f"{setting[: equals.end()]}{quote}{value}{quote}{gap}{rest}"


def _write(path: Path, before: bytes, after: bytes) -> None:
    """Write into the file itself: its owner, its mode and the links to it stay."""
    with open(path, "r+b", buffering=0, opener=_open_or_make) as file:
        try:
            _put(file, after)
        except OSError:
            # A full disk has room for what was there.
            with suppress(OSError):
                _put(file, before)
            raise


def _open_or_make(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _put(file: io.FileIO, data: bytes) -> None:
    file.seek(0)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    file.truncate(len(data))
