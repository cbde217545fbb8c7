"""Where files are read: the real file system, or a fixture; and notes of what was wrong there."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Literal, Protocol


class Files(Protocol):
    """Where files are read; tests hand in a mapping instead of the real file system."""

    def read_text(self, path: str) -> str:
        """Return the text of a file.

        :raises OSError: if there is no such file, or it may not be read
        """

    def is_dir(self, path: str) -> bool:
        """Return whether the path is a folder."""


class RealFiles:
    """The file system of this machine."""

    def read_text(self, path: str) -> str:
        """Return the text of a file; bytes that are no UTF-8 are replaced."""
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()

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
        detail = "".join(char if char.isprintable() else "?" for char in detail)
        self.notes[f"{kind}: {detail}"] = None

    def is_dir(self, path: str) -> bool:
        """Return whether the path is a folder."""
        return self._files.is_dir(path)

    def text(self, path: str) -> str | None:
        """Return the text of a file; ``None`` where it is missing, and, with a note, unreadable."""
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
