"""A finding of the doctor, and the input of a check."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from flask import Flask

from ..runtime.deployment import current
from ..runtime.inherited import Socket, app_threads, connections_to_keep
from ..servers.app_import import AppImport
from .fork_probe import ForkProbe, fork_probe

Level: TypeAlias = Literal["breaks", "multiplies", "unseen"]


@dataclass(frozen=True)
class Finding:
    """One problem with more than one worker."""

    level: Level
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


@dataclass(frozen=True)
class Case:
    """The app that is checked, and how it would be served."""

    app: Flask
    preload: bool
    workers: int
    location: AppImport | None = None

    @cached_property
    def threads(self) -> list[threading.Thread]:
        """The threads that loading the app leaves behind, except those that end within a second."""
        deadline = time.monotonic() + 1
        for thread in app_threads():
            thread.join(max(0.0, deadline - time.monotonic()))
        return app_threads()

    @cached_property
    def engines(self) -> list[Any]:
        """The engines of SQLAlchemy in this process, each pool once."""
        pools = {id(engine.pool): engine for engine in living(known("sqlalchemy.engine", "Engine"))}
        return list(pools.values())

    @cached_property
    def connections(self) -> dict[Socket, str]:
        """The connections that loading the app leaves open, with what is at their other end."""
        return connections_to_keep({self.app, *current.apps})

    @cached_property
    def worker(self) -> ForkProbe | None:
        """What a worker that is forked now would have; ``None`` if none could be forked."""
        return fork_probe(self.app, self.engines, self.connections)


Check: TypeAlias = Callable[[Case], Iterable[Finding]]


def known(module: str, name: str) -> Any:
    """Return a class of an optional package, or ``None`` if the app has not imported it."""
    return getattr(sys.modules.get(module), name, None)


def living(*classes: Any) -> list[Any]:
    """Return the instances of some classes, subclasses too; a class may be ``None``."""
    wanted = {item for item in classes if isinstance(item, type)}
    if not wanted:
        return []
    gc.collect()
    # By type(), not isinstance(), which a proxy would pass on to its target.
    return [thing for thing in gc.get_objects() if not wanted.isdisjoint(type(thing).__mro__)]
