"""Hooks for gunicorn, named in app.config as "hooks.NAME"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gunicorn.workers.sync import SyncWorker


def write_settings(server: Any) -> None:
    """Write gunicorn's settings as they are when it is ready."""
    values = {name: setting.get() for name, setting in server.cfg.settings.items()}
    Path("settings.json").write_text(json.dumps(values, default=repr))


class OwnWorker(SyncWorker):
    """A worker class that is neither sync nor gthread."""
