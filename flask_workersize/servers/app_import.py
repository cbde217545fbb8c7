"""Where a server gets the app from, loaded or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from wsgiref.types import WSGIApplication

from flask.cli import ScriptInfo

LoadApp = Callable[[], WSGIApplication]
"""Returns the WSGI app; gunicorn calls it before the fork with preload, else in each worker."""


@dataclass(frozen=True)
class AppImport:
    """What ``--app`` or ``FLASK_APP`` names; ``None`` looks for app.py and wsgi.py."""

    import_path: str | None

    @classmethod
    def of(cls, info: ScriptInfo) -> AppImport | None:
        """Return what a command was called with; ``None`` if it got a loaded app."""
        return None if info.create_app is not None else cls(info.app_import_path)
