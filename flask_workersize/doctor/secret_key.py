"""A ``SECRET_KEY`` that is another one each time the app is loaded."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from flask import Flask

from .finding import Case, Finding

LOAD_SECONDS = 60.0
"""How long the second load of the app may take."""

_UNSEEN = Finding(
    "unseen",
    "The app could not be loaded a second time, in a process of its own, so it is not known "
    "whether SECRET_KEY stays the same.",
    "Make sure that it is not made at the start.",
)


def made_at_start(case: Case, seconds: float = LOAD_SECONDS) -> Iterable[Finding]:
    """Load the app once more in another process, and compare the two keys.

    It breaks with preload too: the workers of one start share a key then, but not with those of
    the next start, nor with those of another machine.
    """
    key = key_of(case.app)
    if key is None or case.location is None:
        return
    salt = secrets.token_bytes(32)
    digest = _digest_of_second_load(case.location.import_path, salt, seconds)
    if digest is None:
        yield _UNSEEN
    elif not hmac.compare_digest(digest, digest_of(key, salt)):
        what = (
            "sessions end with each start, and one machine does not accept those of another"
            if case.preload
            else "each worker has its own, and does not accept the sessions of the others"
        )
        yield Finding(
            "breaks",
            f"SECRET_KEY is another one each time the app is loaded: {what}.",
            "Make it once, keep it, and set it from the environment or from a file.",
        )


def key_of(app: Flask) -> bytes | None:
    """Return the key that an app signs with; ``None`` for no key."""
    key: Any = app.secret_key
    if isinstance(key, str):
        key = key.encode("utf-8", "surrogatepass")
    return key if isinstance(key, bytes) and key else None


def digest_of(key: bytes, salt: bytes) -> str:
    """Return what two processes compare instead of the key."""
    return hmac.new(salt, key, "sha256").hexdigest()


def _digest_of_second_load(import_path: str | None, salt: bytes, seconds: float) -> str | None:
    asked = json.dumps({"import_path": import_path, "salt": salt.hex()})
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.secret_key_probe"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            told = child.communicate(asked, seconds)[0]
        except subprocess.TimeoutExpired:
            told = ""
        finally:
            _end(child)
    return told or None


def _end(child: subprocess.Popen[str]) -> None:
    """End the process, and whatever the app has started from it."""
    if not hasattr(os, "killpg"):
        child.kill()
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
