"""Start gunicorn in a process that has not loaded the app: ``NOW_LMS_PRELOAD=off``.

``flask serve-prod`` has to load the app to find its own command. A worker that is to load the app
itself, and new code after HUP, has to be forked from a process that has not: so this one makes way
for a fresh one (``exec``, the process id stays), and hands over what was decided.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from flask.cli import ScriptInfo
from pydantic import SecretStr

from ...app_state import adopt
from ...errors import WorkerSizeConfigError, exit_with_one_line
from ...resources import Resources
from ...runtime.deployment import Deployment, process
from ...sizing.plan import SizingPlan
from ...sizing.profile import SizingProfile
from ...sizing.profile_location import ProfileLocation
from ...sizing.settings import SizingSettings
from ...sizing.sources import options_key
from ..app_import import AppImport
from ..proxy import trusting
from .run import run_master

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def reexec(
    location: AppImport | None, deployment: Deployment, options: Mapping[str, Any]
) -> NoReturn:
    """Replace this process by one that serves the app without loading it.

    :param location: where its workers find the app
    :param deployment: what was decided
    :param options: gunicorn's settings
    :raises WorkerSizeConfigError: if workers could not load the app, or an option cannot be handed
        over
    """
    if location is None:
        raise WorkerSizeConfigError(
            f"{deployment.settings.source_of('preload')} asks each worker to load the app itself, "
            "but this process was handed a loaded one: start it with flask --app ... serve-prod, "
            "or leave preload on."
        )
    message = _message(location, deployment, options)
    # A file without a name: what it holds may be secret, and may be more than a pipe takes.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        file.write(message)
        file.seek(0)
        os.set_inheritable(file.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-m", __name__, str(file.fileno())])


def _message(location: AppImport, deployment: Deployment, options: Mapping[str, Any]) -> str:
    settings = deployment.settings
    told = {
        "import_path": location.import_path,
        "settings": {
            **settings.model_dump(),
            "sources": settings.sources,
            "warnings": settings.warnings,
            "profile": _dumped(settings.profile),
        },
        "resources": asdict(deployment.resources),
        "plan": deployment.plan.to_dict(),
        "home": deployment.profile_location and asdict(deployment.profile_location),
        "held_bytes": deployment.held_bytes,
        "options": dict(options),
    }
    try:
        return json.dumps(told, default=_secret_or_refuse)
    except TypeError:
        raise WorkerSizeConfigError(
            f"app.config {options_key('gunicorn')} holds an object that cannot be handed to a "
            "process which has not loaded the app: name hooks and classes as 'module.name', or "
            "leave preload on."
        ) from None


def _dumped(profile: SizingProfile | None) -> dict[str, Any] | None:
    return None if profile is None else profile.model_dump(mode="json", by_alias=True)


def _secret_or_refuse(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    raise TypeError


def take_over(descriptor: int) -> None:
    """Serve what was handed over in an open file."""
    with open(descriptor, encoding="utf-8") as file:
        handed = json.load(file)
    deployment = Deployment(
        SizingSettings(**handed["settings"]),
        Resources(**handed["resources"] | {"notes": tuple(handed["resources"]["notes"])}),
        SizingPlan(
            **handed["plan"] | {name: tuple(handed["plan"][name]) for name in ("warnings", "notes")}
        ),
        ProfileLocation(**handed["home"]) if handed["home"] else None,
        handed["held_bytes"],
    )
    process.deployment = deployment
    location = AppImport(handed["import_path"])
    run_master(lambda: load(location, deployment), handed["options"], deployment)


def load(location: AppImport, deployment: Deployment) -> WSGIApplication:
    """Load the app in a worker, and let it know its plan."""
    app = ScriptInfo(app_import_path=location.import_path).load_app()
    adopt(app, deployment)
    return trusting(app, deployment.settings)


if __name__ == "__main__":
    exit_with_one_line(lambda: take_over(int(sys.argv[1])))
