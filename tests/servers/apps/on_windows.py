"""The facts app on a system that says it is Windows."""

from __future__ import annotations

import sys

from facts import create_app as create_facts  # type: ignore[import-not-found]
from flask import Flask


def create_app() -> Flask:
    """Create the app; what is decided from now on is decided for Windows."""
    app: Flask = create_facts()
    sys.platform = "win32"
    return app
