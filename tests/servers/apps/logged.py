"""The facts app with logging of its own."""

from __future__ import annotations

import logging
import os

from facts import create_app  # type: ignore[import-not-found]

logging.basicConfig(level=os.environ["FACTS_LOG_LEVEL"], format="LOG %(levelname)s %(message)s")

__all__ = ["create_app"]
