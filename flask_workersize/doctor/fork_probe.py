"""Fork a worker for a moment, as gunicorn does after preloading, and ask it what it has."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from select import select
from typing import Any, NoReturn

from flask import Flask

from ..runtime.deployment import current
from ..runtime.fork import after_fork

PROBE_SECONDS = 10.0
"""How long a worker may take to get ready: receivers of the app run in it."""


NO_WORKER = "No worker got ready that could be asked what it renews."
"""Why it is not known what a worker does with what it inherits."""


@dataclass(frozen=True)
class ForkProbe:
    """What a forked worker has."""

    threads: frozenset[str]
    inherited: frozenset[int]


def fork_probe(
    app: Flask, engines: Sequence[Any], seconds: float = PROBE_SECONDS
) -> ForkProbe | None:
    """Fork, do what a worker does first, and return what there is then.

    It runs the app's receivers of ``worker_forked`` and its handlers of ``os.register_at_fork``.
    """
    if not hasattr(os, "fork"):
        return None
    before = [engine.pool for engine in engines]
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of a fork beside threads: whether they are missed is the question.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _be_a_worker(app, engines, before, writing)
    os.close(writing)
    try:
        told = json.loads(_read(reading, seconds))
        return ForkProbe(frozenset(told["threads"]), frozenset(told["inherited"]))
    except ValueError:
        return None
    finally:
        os.close(reading)
        # With whatever the app has started in it.
        for kill in (os.kill, os.killpg):
            with suppress(ProcessLookupError, PermissionError):
                kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _read(descriptor: int, seconds: float) -> bytes:
    """Read one line: what the app has started in the worker may hold the other end for longer."""
    text, deadline = b"", time.monotonic() + seconds
    while select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(descriptor, 65536)
        text += chunk
        if not chunk or text.endswith(b"\n"):
            return text
    return b""


def _be_a_worker(
    app: Flask, engines: Sequence[Any], before: Sequence[Any], writing: int
) -> NoReturn:
    # Whatever happens, this process must not go on as the command.
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nothing, standard)
        for each in {app, *current.apps}:
            after_fork(each)
        others = set(threading.enumerate()) - {threading.current_thread()}
        told = {
            "threads": [origin(thread) for thread in others],
            "inherited": [i for i, old in enumerate(before) if engines[i].pool is old],
        }
        os.write(writing, json.dumps(told).encode() + b"\n")
    finally:
        os._exit(0)


def origin(thread: threading.Thread) -> str:
    """Return what a thread runs, as "module.name", also for one that was started anew."""
    work: Any = getattr(thread, "_target", None)
    if work is None and isinstance(thread, threading.Timer):
        work = thread.function
    # A partial function says what it calls; a class of threads is its own work.
    work = getattr(work, "func", work) or type(thread)
    name = getattr(work, "__qualname__", type(work).__qualname__)
    return f"{getattr(work, '__module__', None) or type(work).__module__}.{name}"
