"""Load the app a second time: ``python -m flask_workersize.doctor.secret_key_probe``.

Standard input names the app; standard output gets the keyed digest of its ``SECRET_KEY``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from flask.cli import ScriptInfo

from .secret_key import digest_of, key_of


def answer() -> NoReturn:
    """Load the app and answer; what it prints is lost, and what it starts is not waited for.

    An app that cannot be loaded is no answer.
    """
    asked = json.load(sys.stdin)
    answering = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    try:
        app = ScriptInfo(app_import_path=asked["import_path"]).load_app()
        os.write(answering, digest_of(key_of(app) or b"", bytes.fromhex(asked["salt"])).encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    answer()
