"""Where the sizing profile of an app is found, and whether it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from platform import python_version

from .profile import SizingProfile
from .validators import ServerName

FILE_NAME = "workersize-profile.json"
"""What the file is called in the app's instance folder."""

REMEDY = "Measure again with flask workersize measure, or set NOW_LMS_SIZING_PROFILE=off."
"""What to do about a profile that cannot be trusted."""


@dataclass(frozen=True)
class ProfileLocation:
    """Whose profile it is: the app, by Flask's ``import_name``, and its instance folder."""

    app: str
    folder: str

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
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if location is not None and profile.app != location.app:
        return "it is another app's"
    if profile.preload != preload:
        return f"it was made with preload {'on' if profile.preload else 'off'}"
    return profile


def doubts_of(profile: SizingProfile, server: ServerName) -> tuple[str, ...]:
    """Return the warning about a profile that may be wrong for a server, if there is one."""
    doubts = []
    if (profile.of_server, server) == ("waitress", "gunicorn"):
        doubts.append("it was learnt under waitress, whose memory is all in one process")
    made, here = (".".join(text.split(".")[:2]) for text in (profile.python, python_version()))
    if made != here:
        doubts.append(f"it was made with Python {made}, this is {here}")
    return (f"The sizing profile may be wrong: {'; '.join(doubts)}. {REMEDY}",) if doubts else ()
