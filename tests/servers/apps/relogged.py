"""The facts app, which configures logging as dictConfig does by default: loggers are disabled."""

from __future__ import annotations

import logging.config
from pathlib import Path

from facts import create_app  # type: ignore[import-not-found]

logging.config.dictConfig(
    {
        "version": 1,
        "handlers": {"file": {"class": "logging.FileHandler", "filename": str(Path("app.log"))}},
        "root": {"level": "INFO", "handlers": ["file"]},
    }
)

__all__ = ["create_app"]
