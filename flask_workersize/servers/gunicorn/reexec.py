"""Start gunicorn in a process that has not loaded the app: ``NOW_LMS_PRELOAD=off``.

``flask serve-prod`` has to load the app to find its own command. A worker that is to load the app
itself, and new code after HUP, has to be forked from a process that has not: so this one makes way
for a fresh one (``exec``, the process id stays), and passes on what was decided.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Mapping
from typing import Any, NoReturn
from wsgiref.types import WSGIApplication

from flask.cli import ScriptInfo

from ...app_state import adopt
from ...errors import WorkerSizeConfigError, one_line_errors
from ...runtime.deployment import Deployment, current
from ...runtime.scoreboard import Scoreboard
from ...sizing.sources import options_key
from ..app_import import AppImport
from ..ending import process_end
from ..proxy import trusting
from ..temporary import open_temporary
from .run import run


def reexec(
    app_import: AppImport | None, deployment: Deployment, options: Mapping[str, Any]
) -> NoReturn:
    """Replace this process by one that serves the app without loading it."""
    if app_import is None:
        raise WorkerSizeConfigError(
            f"{deployment.settings.source_of('preload')} needs an app that is not loaded yet: use "
            "flask --app ... serve-prod, or leave preload on."
        )
    try:
        # A function or a class would make the new process import the app.
        passed = json.dumps(dict(options))
    except TypeError:
        raise WorkerSizeConfigError(
            f"app.config {options_key('gunicorn')} has an object, which cannot be passed to a "
            "new process: write hooks and classes as 'module.name', or leave preload on."
        ) from None
    # A file without a name: what it holds may be secret, and may be more than a pipe takes.
    with open_temporary("gunicorn", "heartbeats", options.get("worker_tmp_dir")) as file:
        pickle.dump((app_import, deployment, passed), file)
        file.seek(0)
        os.set_inheritable(file.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-m", __name__, str(file.fileno())])


def take_over(descriptor: int) -> None:
    """Serve what was passed on in an open file."""
    with open(descriptor, "rb") as file:
        app_import, deployment, passed = pickle.load(file)
    current.deployment = deployment
    board = deployment.make_scoreboard()
    with process_end.bounded():
        run(lambda: load(app_import, deployment, board), deployment, board, json.loads(passed))


def load(app_import: AppImport, deployment: Deployment, board: Scoreboard) -> WSGIApplication:
    """Load the app in a worker, and make it adopt its plan."""
    app = ScriptInfo(app_import_path=app_import.import_path).load_app()
    adopt(app, deployment, board)
    return trusting(app, deployment.settings)


if __name__ == "__main__":
    with one_line_errors():
        take_over(int(sys.argv[1]))
