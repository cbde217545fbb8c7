"""Where an export goes: a folder, or standard output."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import WorkerSizeConfigError, WorkerSizeStartError


def shown(files: Mapping[str, str]) -> str:
    """Return the files as one text: a single one as it is, several each under its name."""
    if len(files) == 1:
        return next(iter(files.values()))
    return "\n".join(f"# ---- {name} ----\n{text}" for name, text in files.items())


def write(files: Mapping[str, str], folder: Path, force: bool) -> None:
    """Write the files, all or none, into a folder that is made if it is not there.

    :param files: text by name
    :param folder: where to
    :param force: whether files that are there are replaced
    :raises WorkerSizeConfigError: if one of them is there, without ``force``
    :raises WorkerSizeStartError: if they cannot be written
    """
    there = [name for name in files if os.path.lexists(folder / name)]
    if there and not force:
        raise WorkerSizeConfigError(
            f"{', '.join(there)} in the folder of -o would be overwritten: use --force, or another "
            "folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the same file system, so that putting them in their places cannot run out of space.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as new:
            for name, text in files.items():
                if (folder / name).is_dir() and not (folder / name).is_symlink():
                    raise IsADirectoryError(0, f"{name} is a folder there")
                (Path(new) / name).write_text(text, encoding="utf-8")
            for name in files:
                os.replace(Path(new) / name, folder / name)
    except (OSError, ValueError) as error:
        # No path holds a zero.
        why = getattr(error, "strerror", None) or error
        raise WorkerSizeStartError(
            f"-o cannot be written to: {why}. Choose another folder."
        ) from None
