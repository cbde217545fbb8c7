"""The facts app on a machine whose available memory differs in every process that looks."""

from __future__ import annotations

import os
from typing import Any

import psutil
from facts import create_app as create_facts  # type: ignore[import-not-found]
from flask import Flask

REAL = psutil.virtual_memory()


def virtual_memory() -> Any:
    """Return figures that tell which process asked."""
    return REAL._replace(available=(300 + os.getpid() % 97) * 1024 * 1024)


def create_app() -> Flask:
    """Create the app, which from now on would see another machine than its launcher saw."""
    psutil.virtual_memory = virtual_memory
    app: Flask = create_facts()
    return app
