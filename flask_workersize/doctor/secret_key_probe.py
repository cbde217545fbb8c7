"""Load the app a second time: ``python -m flask_workersize.doctor.secret_key_probe APP``.

Standard output gets the digest of its ``SECRET_KEY``.
"""

from __future__ import annotations

import os
import sys

from flask.cli import ScriptInfo

from .fork_probe import silence
from .secret_key import digest_of

if __name__ == "__main__":
    answering = os.dup(1)
    silence()
    # If the app cannot be loaded, there is no output. Its threads are not waited for.
    try:
        key = ScriptInfo(app_import_path=sys.argv.pop() or None).load_app().secret_key
        os.write(answering, digest_of(key).encode())
    finally:
        os._exit(0)
