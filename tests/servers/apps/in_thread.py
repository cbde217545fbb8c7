"""A run.py that serves off its main thread, and ends with the status of that."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from facts import create_app  # type: ignore[import-not-found]

from flask_workersize import serve

with ThreadPoolExecutor(1) as pool:
    error = pool.submit(serve, create_app(), sys.argv[1]).exception()  # type: ignore[arg-type]
sys.exit(error.code if isinstance(error, SystemExit) else 99)
