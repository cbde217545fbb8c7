"""Write settings into a .env file: the lines that are there stay."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dotenv import set_key

from ..errors import WorkerSizeStartError


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Set each of these lines in a file: in its place where it is there, else at the end.

    :param path: the file, which is made where it is not there
    :param lines: as NAME=VALUE
    :raises WorkerSizeStartError: if it cannot be read or written
    """
    try:
        # A link stays one, and the file its owner's alone if it was.
        path = path.resolve()
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o600
        for line in lines:
            name, _, value = line.partition("=")
            set_key(path, name, value, quote_mode="never")
        os.chmod(path, mode)
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
        raise WorkerSizeStartError(
            f"The lines cannot be written to {path.name}: {why}. Copy them by hand."
        ) from None
