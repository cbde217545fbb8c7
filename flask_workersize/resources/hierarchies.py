"""Finds the folders of this process' control groups."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from .files import NotingReader

Controller = Literal["cpu", "memory"]

_MEMBERSHIPS = "/proc/self/cgroup"
_MOUNTS = "/proc/self/mountinfo"
_USUAL_PLACE = "/sys/fs/cgroup"
_DELETED = " (deleted)"
"""Suffix that the kernel adds to the path of a deleted group (cgroups(7))."""

_V2 = "cgroup2"
"""Stands in place of a controller: the files of the kernel name none for version 2."""

_OURS = {"cpu", "memory", _V2}


@dataclass(frozen=True)
class _Mount:
    """A mounted hierarchy: the groups from ``root`` on are visible at ``point``."""

    root: PurePosixPath
    point: PurePosixPath
    controllers: frozenset[str]

    def folders(self, path: str) -> list[str]:
        """Return the folders of a group and of all above it; none if it is not below root."""
        group = PurePosixPath(path)
        # ".." is above what this process may see: see cgroup_namespaces(7).
        if ".." in group.parts or not group.is_relative_to(self.root):
            return []
        leaf = self.point / group.relative_to(self.root)
        folders = [folder for folder in (leaf, *leaf.parents) if folder.is_relative_to(self.point)]
        return list(map(str, folders))


class Hierarchies:
    """The hierarchies of control groups that this process is in."""

    def __init__(self, reader: NotingReader) -> None:
        self._reader = reader
        self._paths = self._read_paths()
        self._mounts = self._read_mounts()

    def groups(self, controller: Controller) -> tuple[bool, list[str]]:
        """Return whether version 2 has a controller, and the folders of the groups, leaf first."""
        # Version 1 names the controllers it has; version 2 has whatever version 1 has not.
        named = self._paths or frozenset().union(*(mount.controllers for mount in self._mounts))
        key = controller if controller in named else _V2
        mounts = [mount for mount in self._mounts if key in mount.controllers]
        # The same hierarchy can be mounted twice; the usual place comes first.
        mounts.sort(key=lambda mount: not mount.point.is_relative_to(_USUAL_PLACE))
        path = self._paths.get(key)
        for mount in mounts:
            if path and (folders := mount.folders(path)):
                return key == _V2, self._seen(folders)
        # The group is unknown or not visible: limits on the whole container still apply.
        points = [str(mount.point) for mount in mounts[:1]]
        for point in points:
            self._reader.note("approximate", f"{point} is used as the group of this process")
        return key == _V2, points

    def _seen(self, folders: list[str]) -> list[str]:
        """Return the folders without the leaf if that is not there: the groups above still bind."""
        leaf = folders[0]
        if len(folders) == 1 or self._reader.is_dir(leaf):
            return folders
        if leaf.endswith(_DELETED):
            group = leaf.removesuffix(_DELETED)
            self._reader.note("approximate", f"{group} was deleted; using the groups above it")
        else:
            self._reader.note("unreadable", leaf)
        return folders[1:]

    def _read_paths(self) -> dict[str, str]:
        """Return the path of this process' group by controller: "4:memory:/a/b", "0::/a/b"."""
        paths: dict[str, str] = {}
        for line in _lines(self._reader.text(_MEMBERSHIPS)):
            fields = line.split(":", 2)
            if len(fields) != 3 or not fields[2].startswith("/"):
                self._reader.note("malformed", _MEMBERSHIPS)
                continue
            for controller in (fields[1] or _V2).split(","):
                paths[controller] = fields[2]
        return paths

    def _read_mounts(self) -> list[_Mount]:
        text = self._reader.text(_MOUNTS)
        if text is None:
            return self._guess_mounts()
        mounts: dict[PurePosixPath, _Mount] = {}
        for line in _lines(text):
            before, _, after = line.partition(" - ")
            fields, types = before.split(" "), after.split(" ")
            if len(fields) < 6 or len(types) < 3:
                self._reader.note("malformed", _MOUNTS)
                continue
            root, point = map(_unescape, fields[3:5])
            # A later mount at the same point hides an earlier one.
            hidden = mounts.pop(point, None)
            if types[0] in ("cgroup", "cgroup2"):
                controllers = [_V2] if types[0] == "cgroup2" else types[-1].split(",")
                mounts[point] = _Mount(root, point, frozenset(controllers))
            elif hidden is not None and hidden.controllers & _OURS:
                self._reader.note("unreadable", str(point))
        return list(mounts.values())

    def _guess_mounts(self) -> list[_Mount]:
        """Return the mounts that most systems have, if the list is missing."""
        places = {
            f"{_USUAL_PLACE}/unified": _V2,
            _USUAL_PLACE: _V2,
            f"{_USUAL_PLACE}/memory": "memory",
            f"{_USUAL_PLACE}/cpu": "cpu",
            f"{_USUAL_PLACE}/cpu,cpuacct": "cpu",
        }
        found = [
            _Mount(PurePosixPath("/"), PurePosixPath(point), frozenset([controller]))
            for point, controller in places.items()
            if self._reader.is_dir(point)
        ]
        if found:
            self._reader.note("approximate", f"{_USUAL_PLACE} is assumed to be the mount point")
        return found


def _lines(text: str | None) -> list[str]:
    """Return the lines that the kernel wrote; a name may hold what else ends a line elsewhere."""
    return [line for line in (text or "").split("\n") if line]


def _unescape(path: str) -> PurePosixPath:
    r"""Undo what mountinfo does to spaces and the like: ``\040`` (proc_pid_mountinfo(5))."""
    return PurePosixPath(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path))
