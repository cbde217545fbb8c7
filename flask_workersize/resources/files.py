"""Where files are read: the real file system, or a fixture; and notes of what was wrong there."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection
from typing import Literal, Protocol

from ..errors import printable

_MOST_BYTES = 16 * 1024 * 1024
"""Longest file of the kernel that is read; a machine with 50,000 mounts has a longer list."""


def read_regular(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """Return the contents of a regular file; no other kind of file can block the reader.

    :param most_bytes: what it may hold at most
    :raises OSError: if it cannot be read
    :raises ValueError: with the reason, if it is not a regular file, or too large
    """
    # Before it is opened, too: opening alone starts some devices, and wakes writers of a pipe.
    _check_regular(os.stat(path).st_mode)
    with open(path, "rb", opener=_open_at_once) as file:
        _check_regular(os.fstat(file.fileno()).st_mode)
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"larger than {most_bytes // 1024} KB")
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(mode: int) -> None:
    # Opening a folder fails anyway, with a better reason.
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError("not a regular file")


class Files(Protocol):
    """Reads files; tests pass a mapping instead of the real file system."""

    def read_text(self, path: str) -> str:
        """Return the text of a file.

        :raises OSError: if the file does not exist or cannot be read
        """

    def is_dir(self, path: str) -> bool:
        """Return whether the path is a folder."""


class RealFiles:
    """The file system of this machine."""

    def read_text(self, path: str) -> str:
        """Return the text of a file; bytes that are not UTF-8 are replaced."""
        return read_regular(path, _MOST_BYTES).decode(errors="replace")

    def is_dir(self, path: str) -> bool:
        """Return whether the path is a folder."""
        return os.path.isdir(path)


class NotingReader:
    """Reads small files, raises nothing, and notes what could not be read or understood."""

    def __init__(self, files: Files | None = None) -> None:
        self._files = RealFiles() if files is None else files
        self.notes: dict[str, None] = {}
        """What was noted, as "class: detail", without repeats."""

    def note(self, kind: Literal["unreadable", "malformed", "approximate"], detail: str) -> None:
        """Note something once; on one line, whatever a folder is called."""
        self.notes[printable(f"{kind}: {detail}")] = None

    def is_dir(self, path: str) -> bool:
        """Return whether the path is a folder."""
        return self._files.is_dir(path)

    def text(self, path: str) -> str | None:
        """Return the text of a file; ``None`` if it is missing or, with a note, unreadable."""
        try:
            return self._files.read_text(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            self.note("unreadable", path)
            return None

    def table(self, path: str, names: Collection[str]) -> dict[str, int]:
        """Return the numbers of a file that has lines of a name and a number."""
        numbers = {}
        for line in (self.text(path) or "").splitlines():
            name, _, text = line.partition(" ")
            if name in names:
                number = whole_number(text.strip())
                if number is None:
                    self.note("malformed", path)
                else:
                    numbers[name] = number
        return numbers


def whole_number(text: str) -> int | None:
    """Return a number as the kernel writes it: ASCII digits, at most 20 for 64 bits."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None
