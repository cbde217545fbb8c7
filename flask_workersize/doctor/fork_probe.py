"""Fork a worker for a moment, as gunicorn does after preloading, to see what it has."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from flask import Flask

from ..runtime.deployment import current
from ..runtime.fork import after_fork
from ..runtime.inherited import Inheritance, Socket, origin

NO_WORKER = "No test worker became ready, so it is unknown what workers renew."


@dataclass(frozen=True)
class ForkProbe:
    """What a forked worker has."""

    threads: frozenset[str]
    inherited: frozenset[int]
    """Which of the engines have the launcher's pool."""

    shared: Mapping[Socket, str]
    """The launcher's connections."""


def fork_probe(
    app: Flask,
    engines: Sequence[Any],
    sockets: Mapping[Socket, str] | None = None,
    seconds: float = 10.0,
) -> ForkProbe | None:
    """Fork, run a worker's first steps, and return what the worker has then.

    It runs the app's receivers of ``worker_forked`` and its handlers of ``os.register_at_fork``,
    which may take some seconds.
    """
    if not hasattr(os, "fork"):
        return None
    reading, writing = Pipe(duplex=False)
    with warnings.catch_warnings():
        # Python warns of a fork beside threads; this probe checks exactly that.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _be_a_worker(app, engines, Inheritance((), sockets or {}), writing)
    writing.close()
    with reading, suppress(EOFError, OSError):
        try:
            return reading.recv() if reading.poll(seconds) else None
        finally:
            os.kill(child, signal.SIGKILL)
            kill_group(child)
            os.waitpid(child, 0)
    return None


def _be_a_worker(
    app: Flask, engines: Sequence[Any], inheritance: Inheritance, writing: Connection
) -> NoReturn:
    # In no case may this process continue as the command.
    try:
        os.setsid()
        silence()
        pools = [engine.pool for engine in engines]
        for each in {app, *current.apps}:
            after_fork(each)
        others = set(threading.enumerate()) - {threading.current_thread()}
        kept = (i for i, old in enumerate(pools) if engines[i].pool is old)
        threads = frozenset(map(origin, others))
        writing.send(ForkProbe(threads, frozenset(kept), inheritance.shared()))
    finally:
        os._exit(0)


def silence() -> None:
    """Keep the app's output from the terminal, and give it no input."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)


def kill_group(leader: int) -> None:
    """Kill everything that the app has started in this session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
