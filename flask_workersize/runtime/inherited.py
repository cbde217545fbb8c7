"""What loading the app leaves behind that a fork breaks: threads and connections.

A thread lives in the process that started it, so no worker has it. A connection is one stream for
all processes, so a worker may read the answer to another one's request.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flask import Flask

from ..log import shown
from ..resources.backlog import unix_peers
from .fork import engines_of

MIXED = "may read each other's answers, unless the client detects the fork"

_MINDFUL = frozenset({"flask_workersize", "sentry_sdk"})
"""Packages whose threads check the process id, and are started again if it is another."""

_STREAMS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)

Socket = tuple[int, int]
"""Descriptor and inode: they distinguish an inherited socket from one that reuses its number."""

Thread = tuple[str, str]
"""Name, and what it runs."""


@dataclass(frozen=True)
class Inheritance:
    """What a process has before it forks workers; the methods are for a worker to call."""

    threads: tuple[Thread, ...]
    sockets: Mapping[Socket, str]

    @classmethod
    def of(cls, apps: Iterable[Flask]) -> Inheritance:
        """Return the threads and connections of this process."""
        threads = tuple((thread.name, origin(thread)) for thread in app_threads())
        return cls(threads, connections_to_keep(apps))

    def lost(self) -> tuple[Thread, ...]:
        """Return the threads that this worker does not have."""
        there = set(map(origin, threading.enumerate()))
        return tuple(thread for thread in self.threads if thread[1] not in there)

    def shared(self) -> dict[Socket, str]:
        """Return the connections that this worker has neither closed nor replaced."""
        now = connections() if self.sockets else {}
        renewed = {peer for key, peer in now.items() if key not in self.sockets}
        return {
            key: peer for key, peer in self.sockets.items() if key in now and peer not in renewed
        }

    def warning(self) -> str | None:
        """Return one line on what this worker lacks and shares; ``None`` if that is nothing."""
        parts = []
        if lost := self.lost():
            parts.append(f"no worker has the threads {named(lost)}")
        if peers := set(self.shared().values()):
            parts.append(f"all workers share the connections to {shown(sorted(peers))} and {MIXED}")
        if not parts:
            return None
        return (
            f"Loading the app started things that do not survive a fork: {'; '.join(parts)}. "
            "Start them in a receiver of the signal worker_forked, or set NOW_LMS_PRELOAD=off."
        )


def app_threads() -> list[threading.Thread]:
    """Return the threads besides this one, except those that handle a fork themselves."""
    others = set(threading.enumerate()) - {threading.main_thread(), threading.current_thread()}
    theirs = (item for item in others if origin(item).partition(".")[0] not in _MINDFUL)
    return sorted(theirs, key=lambda thread: thread.name)


def named(threads: Iterable[Thread]) -> str:
    """Return threads as a part of one line."""
    return shown([f"{name} in {where}" for name, where in threads])


def origin(thread: threading.Thread) -> str:
    """Return what a thread runs, as "module.name", also for one that was started again."""
    work: Any = getattr(thread, "_target", None)
    if work is None and isinstance(thread, threading.Timer):
        work = thread.function
    # A partial function has its callee; a thread class is its own work.
    work = getattr(work, "func", work) or type(thread)
    name = getattr(work, "__qualname__", type(work).__qualname__)
    return f"{getattr(work, '__module__', None) or type(work).__module__}.{name}"


def connections_to_keep(apps: Iterable[Flask]) -> dict[Socket, str]:
    """Return the connections of this process, without those that wait in Flask-SQLAlchemy's pools.

    These are closed: each worker gets a pool of its own.
    """
    found = connections()
    if found:
        for engine in (engine for app in apps for engine in engines_of(app)):
            # A driver's failure to close a connection must not stop the server.
            with suppress(Exception):
                engine.dispose()
        found = connections()
    return found


def connections() -> dict[Socket, str]:
    """Return the connections of this process, each with what is at its other end.

    Left out are standard streams, which a service manager may have connected, and pairs of which
    both ends are here.
    """
    found = _sockets()
    peers = unix_peers() if any(end.family == socket.AF_UNIX for end in found.values()) else {}
    inodes = {inode for _, inode in found}
    names = {"", *(end.here for end in found.values())}

    def is_elsewhere(inode: int, end: _End) -> bool:
        # A unix socket that has not been accepted yet has no number.
        peer = peers.get(inode)
        return peer not in inodes if peer else end.there not in names

    return {key: end.peer for key, end in found.items() if is_elsewhere(key[1], end)}


@dataclass(frozen=True)
class _End:
    """One end of a connection: its own name and that of the other end, "" for none."""

    family: int
    here: str
    there: str

    @property
    def peer(self) -> str:
        """What a person knows the other end by."""
        return self.there or self.here or "another process"


def _sockets() -> dict[Socket, _End]:
    """Return every connected stream but the standard ones; none if they cannot be listed."""
    try:
        descriptors = list(map(int, os.listdir("/dev/fd")))
    except OSError:
        return {}
    found: dict[Socket, _End] = {}
    standard = set(map(_inode, range(3)))
    for descriptor in descriptors:
        inode = _inode(descriptor)
        end = _end(descriptor) if inode not in standard else None
        if end is not None:
            found[descriptor, inode] = end
    return found


def _inode(descriptor: int) -> int:
    """Return the inode of an open file; 0 if it is not open."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return 0


def _end(descriptor: int) -> _End | None:
    """Return one end of a connection; ``None`` for any other file."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        if sock.type not in _STREAMS:
            return None
        return _End(sock.family, _name(sock.getsockname()), _name(sock.getpeername()))
    except OSError:
        # It listens, or its other end has gone.
        return None
    finally:
        sock.detach()


def _name(address: Any) -> str:
    if isinstance(address, tuple):
        host, port = address[:2]
        host = str(host).removeprefix("::ffff:")
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return address.decode(errors="replace") if isinstance(address, bytes) else str(address or "")
