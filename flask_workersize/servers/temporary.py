"""Temporary files, for which both servers need a folder that they may write to."""

from __future__ import annotations

import logging
import tempfile
from typing import IO

from ..errors import WorkerSizeStartError
from ..log import say

SHARED_MEMORY = "/dev/shm"
"""A folder that is writable in a read-only container, too."""


def use_shared_memory() -> None:
    """Keep temporary files of this process in shared memory if there is no usual folder."""
    if not _is_writable(None) and _is_writable(SHARED_MEMORY):
        tempfile.tempdir = SHARED_MEMORY
        say(logging.WARNING, _IN_MEMORY)


def open_temporary(server: str, purpose: str, folder: str | None = None) -> IO[bytes]:
    """Open a file without a name.

    :param folder: ``None`` for the usual one
    :raises WorkerSizeStartError: if the folder is not writable
    """
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        raise WorkerSizeStartError(
            f"{server} needs a writable folder for {purpose}: mount a tmpfs on /dev/shm or /tmp."
        ) from None


def _is_writable(folder: str | None) -> bool:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


_IN_MEMORY = (
    "No folder for temporary files is writable, so large uploads go to /dev/shm, which is small in "
    "most containers and counts as memory. Mount a volume or a tmpfs on /tmp, or set TMPDIR."
)
