"""Where the sizing profile of an app is found, and whether it is to be believed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from .profile import SizingProfile
from .validators import ServerName

FILE_NAME = "workersize-profile.json"
"""What the file is called in the app's instance folder."""

STALE_AFTER = timedelta(days=30)
"""How much newer code may be than its profile: what was written since may cost more."""

REMEDY = "Make it anew with flask workersize measure, or set NOW_LMS_SIZING_PROFILE=off."
"""What to do about a profile that is not to be believed."""

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class _App(Protocol):
    import_name: str
    instance_path: str
    root_path: str


@dataclass(frozen=True)
class ProfileLocation:
    """Whose profile it is.

    :param app: name of the app, Flask's ``import_name``
    :param folder: its instance folder, where the profile is looked for
    :param code_folder: the folder of its code
    """

    app: str
    folder: str
    code_folder: str

    @classmethod
    def of(cls, app: _App) -> ProfileLocation:
        """Return the home of an app's profile; the app is Flask's."""
        return cls(app.import_name, app.instance_path, app.root_path)

    @property
    def path(self) -> Path:
        """Where the profile is, if nothing else is said."""
        return Path(self.folder) / FILE_NAME

    def code_changed_at(self) -> datetime | None:
        """Return when the newest module of the app was written; ``None`` if that is unknown."""
        times = [_written_at(path) for path in self._modules()]
        return datetime.fromtimestamp(max(times), UTC) if any(times) else None

    def _modules(self) -> Iterable[str]:
        """Yield the files of what was loaded of the app's code, not of what it has installed."""
        inside = os.path.join(self.code_folder, "")
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if not isinstance(path, str) or not path.startswith(inside):
                continue
            # The folder of a single module may have the environment in it.
            if "site-packages" not in path.removeprefix(inside).split(os.sep):
                yield path


FoundProfile = tuple[SizingProfile | None, tuple[str, ...]]
"""A profile to plan with, if there is one, and what is to be said of it."""


def find_profile(
    choice: str | None, profile_location: ProfileLocation | None, preload: bool, server: ServerName
) -> FoundProfile | str:
    """Find the profile to plan with.

    :param choice: the path of its file; "off" for none; ``None`` and "learn" for the one in the
        instance folder, if there is one
    :param home: whose it is to be; ``None`` where that is not known
    :param preload: whether the app is loaded before the workers are forked
    :param server: the server that is planned for
    :returns: the profile, or why the one that is there cannot be used
    """
    is_named = choice not in (None, "learn")
    path = Path(str(choice)) if is_named else profile_location.path if profile_location else None
    if choice == "off" or path is None:
        return None, ()
    try:
        profile = SizingProfile.load(path)
    except FileNotFoundError:
        return "there is no such file" if is_named else (None, ())
    except OSError as error:
        return error.strerror or "it cannot be read"
    except ValueError as error:
        return str(error)
    if why := _refused(profile, profile_location, preload):
        return why
    doubts = "; ".join(_doubts(profile, profile_location, server))
    said = f"The sizing profile may be wrong: {doubts}. {REMEDY}"
    return profile, (said,) if doubts else ()


def _refused(
    profile: SizingProfile, profile_location: ProfileLocation | None, preload: bool
) -> str:
    if profile_location is not None and profile.app != profile_location.app:
        return "it is another app's"
    if profile.preload != preload:
        return f"it was made with preload {'on' if profile.preload else 'off'}"
    return ""


def _doubts(
    profile: SizingProfile, profile_location: ProfileLocation | None, server: ServerName
) -> Iterable[str]:
    if (profile.of_server, server) == ("waitress", "gunicorn"):
        yield "it was learnt under waitress, whose memory is all in one process"
    if _minor(profile.python) != _PYTHON:
        yield f"it was made with Python {_minor(profile.python)}, this is {_PYTHON}"
    changed = profile_location.code_changed_at() if profile_location is not None else None
    if changed is not None and changed > profile.made_at + STALE_AFTER:
        yield f"the code is more than {STALE_AFTER.days} days newer"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _written_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
