"""Serve the example: ``python -m example_app.run`` or ``python example_app/run.py``."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Create the app and serve it under the plan that fits this machine."""
    if not __package__:
        # Started as a file: Python looks for modules beside it, not in the project.
        sys.path[0] = str(Path(__file__).resolve().parent.parent)

    from example_app import create_app
    from example_app.storage import DatabaseUnavailableError
    from flask_workersize import serve

    try:
        app = create_app()
    except DatabaseUnavailableError as error:
        sys.exit(f"Error: {error}")
    serve(app)


if __name__ == "__main__":
    main()
