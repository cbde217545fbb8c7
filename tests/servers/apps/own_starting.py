"""A gunicorn.conf.py whose on_starting and on_reload call none of ours."""

from __future__ import annotations

import os
from typing import Any

from flask_workersize import gunicorn_conf
from flask_workersize.gunicorn_conf import *  # noqa: F403
from flask_workersize.gunicorn_conf import __all__  # noqa: F401

if "OWN_RELOAD" in os.environ:

    def on_reload(server: Any) -> None:
        """Call ours."""
        gunicorn_conf.on_reload(server)

else:

    def on_starting(server: Any) -> None:
        """Do nothing."""
