"""Where files are read: the real file system, or a fixture."""

from __future__ import annotations

import os
from typing import Protocol


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
