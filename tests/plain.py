"""Plain values that tests hand in instead of a machine, an environment and an app's config."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import settings

from flask_workersize import Resources, SizingPlan, SizingSettings, WorkerSizeConfigError
from flask_workersize.servers.launch import gunicorn_args
from flask_workersize.sizing.plan import compute_plan
from flask_workersize.sizing.profile_location import ProfileLocation
from flask_workersize.sizing.settings import NAMES
from flask_workersize.sizing.sources import GUNICORN_ARGS
from flask_workersize.sizing.validators import ServerName

MB = 1024 * 1024

SECRET = "s3cr3t-7f3a"
"""A value that is found wherever it is shown."""

VARIABLES = [GUNICORN_ARGS, *(name for names in NAMES.values() for name in names.variables)]

untimed = settings(deadline=None)
"""Examples that may take as long as they take."""


def load(
    environ: Mapping[str, str] | None = None,
    profile_location: ProfileLocation | None = None,
    **layers: Any,
) -> SizingSettings:
    """Load settings from the given layers alone, and plan from a profile as an app does."""
    settings = SizingSettings.load(environ=environ or {}, gunicorn_args=gunicorn_args, **layers)
    return settings.with_profile(profile_location)


def refused(environ: Mapping[str, str] | None = None, **layers: Any) -> str:
    """Return the line that refuses the settings, and hold it to what every such line has to be."""
    with pytest.raises(WorkerSizeConfigError) as caught:
        load(environ, **layers)
    check_line(caught.value)
    return caught.value.message


def check_line(error: WorkerSizeConfigError) -> None:
    """One line, also where click shows it, exit status 2, and not the secret."""
    shown = io.StringIO()
    error.show(shown)
    assert shown.getvalue() == f"Error: {error.message}\n"
    assert len(error.message.splitlines()) == 1
    assert error.exit_code == 2
    for text in (str(error), repr(error), shown.getvalue()):
        assert SECRET not in text


def resources(cpus: float = 4, memory_mb: float = 8192, **others: Any) -> Resources:
    """Return a machine with that many CPUs and that much memory available."""
    return Resources(
        **{
            "cpus": cpus,
            "cpu_source": "host",
            "cpu_at": None,
            "memory_limit": 64 * 1024 * MB,
            "memory_available": int(memory_mb * MB),
            "memory_source": "host",
            "memory_at": None,
            **others,
        }
    )


def plan(
    environ: Mapping[str, str] | None = None,
    cpus: float = 4,
    memory_mb: float = 8192,
    server: ServerName = "gunicorn",
) -> SizingPlan:
    """Return the plan for an environment and a machine."""
    return compute_plan(load(environ), resources(cpus, memory_mb), server)


def make_endless(path: Path) -> None:
    """Put a device like /dev/zero in a place; for root one of its own, which may be lost."""
    if os.geteuid():
        path.symlink_to("/dev/zero")
        return
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except OSError:
        pytest.skip("no device can be made here")


def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every variable that the settings know from this process."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def new_app(**config: Any) -> Flask:
    """Return an app without the extension; keywords are config keys after ``WORKERSIZE_``."""
    # No folder, so that no profile of whoever works here is found.
    app = Flask("lms", instance_path=os.path.abspath("no-instance"))
    app.config.update({f"WORKERSIZE_{key}": value for key, value in config.items()})
    return app
