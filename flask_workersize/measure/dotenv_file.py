"""Write settings into a .env file: the lines that are there stay."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from dotenv import set_key

from ..errors import WorkerSizeStartError


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Set each of these lines in a file: in its place where it is there, else at the end."""
    try:
        # A link stays one, and the file its owner's alone if it was.
        path = path.resolve()
        before = path.stat() if path.exists() else None
        text = path.read_text(encoding="utf-8") if before else ""
        for line in lines:
            name, _, value = line.partition("=")
            is_exported = re.search(rf"^\s*export\s+{name}\s*=", text, re.M) is not None
            set_key(path, name, value, quote_mode="never", export=is_exported)
        os.chmod(path, before.st_mode & 0o7777 if before else 0o600)
        if before and hasattr(os, "chown"):
            os.chown(path, before.st_uid, before.st_gid)
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
        problem = f"The lines cannot be written to {path.name}: {why}. Copy them by hand."
        raise WorkerSizeStartError(problem) from None
