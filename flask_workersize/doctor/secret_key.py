"""A ``SECRET_KEY`` that changes each time the app is loaded."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable

from .finding import Case, Finding
from .fork_probe import kill_group


def made_at_start(case: Case, seconds: float = 60.0) -> Iterable[Finding]:
    """Load the app a second time in another process, and compare the two keys.

    It breaks with preload too: the workers of one start then share a key, but not with the next
    start or another machine. The second load may take some seconds.
    """
    if not case.app.secret_key or case.location is None:
        return
    digest = _digest_of_second_load(case.location.import_path or "", seconds)
    if not digest:
        yield Finding(
            "unseen",
            "The app could not be loaded a second time, so it is unknown whether SECRET_KEY "
            "stays the same.",
            "Make sure that it is not generated at startup.",
        )
    elif digest != digest_of(case.app.secret_key):
        what = (
            "a restart ends all sessions, and one machine does not accept those of another"
            if case.preload
            else "each worker has its own and rejects the sessions of the others"
        )
        yield Finding(
            "breaks",
            f"SECRET_KEY changes each time the app is loaded: {what}.",
            "Generate it once, store it, and set it from the environment or a file.",
        )


def digest_of(key: str | bytes | None) -> str:
    """Return the digest that two processes compare instead of the key."""
    encoded = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    return hashlib.sha256(encoded or b"").hexdigest()


def _digest_of_second_load(import_path: str, seconds: float) -> str | None:
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.secret_key_probe", import_path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            return child.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            return None
        finally:
            child.kill()
            if hasattr(os, "killpg"):
                kill_group(child.pid)
