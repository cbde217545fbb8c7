"""Files of a group's own, as a container has them.

The kernel charges a page of a file to the group that reads it first. On a machine where Python runs
elsewhere too, that is another one, and a group of the tests would seem to need no files at all.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.resources.real_groups import RealGroup


def mapped_files(pids: Iterable[int]) -> list[str]:
    """Return the files that processes map."""
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    names = {line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/")}
    return sorted(name for name in names if os.path.isfile(name))


class OwnFiles:
    """Copies of files in a folder, for commands of a group.

    :param group: the group, whose are the pages of the copies
    :param folder: an empty folder
    :param files: the files
    :raises OSError: if this machine, or this user, cannot mount
    """

    def __init__(self, group: RealGroup, folder: Path, files: Sequence[str]) -> None:
        self._group = group
        self._script = folder / "mount"
        copies = {name: str(folder / str(number)) for number, name in enumerate(files)}
        lines = [f"mount --bind {copy} {shlex.quote(name)}" for name, copy in copies.items()]
        self._script.write_text("\n".join(["set -e", *lines, 'exec "$@"']))
        copy = [f"cp -p {shlex.quote(name)} {copy}" for name, copy in copies.items()]
        # Pages that are not on the disk yet would count as the process' own.
        copy.append(f"sync {folder}/*")
        subprocess.run(group.command(["sh", "-ec", "\n".join(copy)]), check=True)
        tried = subprocess.run(self.command(["true"]), check=False, capture_output=True, text=True)
        if tried.returncode:
            raise OSError(tried.stderr.strip())

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command line that joins the group and has the copies in place of the files."""
        return self._group.command(["unshare", "--mount", "sh", str(self._script), *command])
