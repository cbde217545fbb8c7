"""Where the sizing profile of an app is found, and whether it is to be believed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .profile import SizingProfile
from .validators import ServerName

FILE_NAME = "workersize-profile.json"
"""What the file is called in the app's instance folder."""

REMEDY = "Measure again with flask workersize measure, or set NOW_LMS_SIZING_PROFILE=off."
"""What to do about a profile that is not to be believed."""

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class _App(Protocol):
    import_name: str
    instance_path: str


@dataclass(frozen=True)
class ProfileLocation:
    """Whose profile it is: the app, by Flask's ``import_name``, and its instance folder."""

    app: str
    folder: str

    @classmethod
    def of(cls, app: _App) -> ProfileLocation:
        """Return where the profile of a Flask app is looked for."""
        return cls(app.import_name, app.instance_path)

    @property
    def path(self) -> Path:
        """The file, if no other is named."""
        return Path(self.folder) / FILE_NAME


def find_profile(
    path: Path, location: ProfileLocation | None, preload: bool
) -> SizingProfile | str | None:
    """Return the profile in a file, or why it cannot be used; ``None`` if there is no file."""
    try:
        profile = SizingProfile.load(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror or "it cannot be read"
    except ValueError as error:
        return str(error)
    if location is not None and profile.app != location.app:
        return "it is another app's"
    if profile.preload != preload:
        return f"it was made with preload {'on' if profile.preload else 'off'}"
    return profile


def doubts_of(profile: SizingProfile, server: ServerName) -> tuple[str, ...]:
    """Return the warning about a profile that may be wrong for a server, if there is one."""
    doubts = "; ".join(_doubts(profile, server))
    return (f"The sizing profile may be wrong: {doubts}. {REMEDY}",) if doubts else ()


def _doubts(profile: SizingProfile, server: ServerName) -> Iterable[str]:
    if (profile.of_server, server) == ("waitress", "gunicorn"):
        yield "it was learnt under waitress, whose memory is all in one process"
    python = ".".join(profile.python.split(".")[:2])
    if python != _PYTHON:
        yield f"it was made with Python {python}, this is {_PYTHON}"
