"""Where a process that has not loaded the app finds it."""

from __future__ import annotations

from dataclasses import dataclass

from flask.cli import ScriptInfo


@dataclass(frozen=True)
class AppImport:
    """What ``--app`` or ``FLASK_APP`` names; ``None`` looks for app.py and wsgi.py."""

    import_path: str | None

    @classmethod
    def of(cls, info: ScriptInfo) -> AppImport | None:
        """Return what a command was called with; ``None`` if it was handed a loaded app."""
        return None if info.create_app is not None else cls(info.app_import_path)
