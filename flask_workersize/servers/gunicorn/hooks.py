"""Our part of gunicorn's public hooks ("Server Hooks" in its docs), however it was started.

The master gives a worker its row before the fork and takes it when the worker has ended; the worker
fills it.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.util import set_owner_process

from ...app_state import adopt_current
from ...log import say
from ...monitor.first_request import FirstRequest
from ...monitor.scaling import ArbiterScaler, SignalScaler, raise_oom_score
from ...resources.gauge import MemoryGauge
from ...runtime.deployment import Deployment, current
from ...runtime.fork import after_fork
from ...runtime.inherited import Inheritance
from ...runtime.meter import Meter, contained
from ...runtime.scoreboard import Scoreboard
from ...runtime.snapshot import State
from ...runtime.worker_record import WorkerRecord
from ...sizing.plan import MB
from ..ending import process_end
from ..health_port import HealthPort, make_monitor
from ..overload import OverloadGate
from ..proxy import note_kept_connections, trusting
from .arrival import GunicornArrival
from .newborn import defer_signals, hold_signals
from .orphan import watch_master


class Hooks:
    """The hooks of one deployment."""

    def __init__(self, deployment: Deployment, board: Scoreboard, is_ours: bool = True) -> None:
        self.board = board
        # gunicorn's own master sees only at its next hook that the monitor has died.
        self.port = HealthPort(deployment, board, is_held=is_ours)
        make_scaler = ArbiterScaler if is_ours else SignalScaler
        self.monitor = make_monitor(deployment, board, self.port, make_scaler, self._settle)
        self._settings = deployment.settings
        self._worker_bytes = deployment.plan.worker_memory_mb * MB
        self.timeout = deployment.settings.timeout
        self._is_ours = is_ours
        self._inheritance: Inheritance | None = None
        self._keeps_connections = deployment.plan.worker_class == "gthread"
        # gunicorn's own threads accept more than they can serve, and do not report it.
        self._is_sync = deployment.plan.worker_class == "sync"
        self._knows_queue = is_ours or self._is_sync

    def when_ready(self, server: Any) -> None:
        """Record in the scoreboard that the server serves, and its listeners."""
        if self._knows_queue:
            self.board.set_listeners([listener.sock for listener in server.LISTENERS])
        self.board.state = State.SERVING
        if not self._is_ours and self._is_sync and _is_beyond_select(server.LISTENERS):
            say(logging.WARNING, _BEYOND_SELECT)
        if self._keeps_connections:
            note_kept_connections(self._settings, server.cfg.keepalive, "gunicorn's --keep-alive")

    def pre_fork(self, server: Any, worker: Any) -> None:
        """Give a worker its row; see that the monitor is there."""
        self.monitor.keep()
        self.board.sweep(other.age for other in server.WORKERS.values())
        self.board.allocate(worker.age)
        if worker.age == 1 and server.cfg.preload_app:
            self._inheritance = Inheritance.of(current.apps)

    def post_fork(self, server: Any, worker: Any) -> None:
        """Give a worker connections of its own, and keep it from holding the health port."""
        defer_signals(worker)
        watch_master(worker)
        # What climbs out of a worker would run the stop of gunicorn's master there.
        worker.init_process = contained(worker.init_process, (Exception, SystemExit))
        self.monitor.close_port()
        current.warns = worker.age == 1
        raise_oom_score()
        row = self.board.record_of(worker.age)
        if row is not None:
            row.enter()
        if current.apps and not self._is_ours:
            # They were preloaded; others adopt it in post_worker_init, or when they are made.
            adopt_current()
        for app in list(current.apps):
            contained(after_fork)(app)

    def post_worker_init(self, worker: Any) -> None:
        """Put the meter around the app, and count the worker's heartbeats."""
        if not self._is_ours:
            worker.wsgi = trusting(worker.wsgi, self._settings)
            adopt_current()
        if worker.age == 1 and self._inheritance and (warning := self._inheritance.warning()):
            say(logging.WARNING, warning)
        row = self.board.record_of(worker.age)
        if row is None:
            return
        gate = OverloadGate(GunicornArrival(closes=self._is_ours), self._settings, self.board)
        worker.wsgi = Meter(worker.wsgi, row, gate=gate)
        worker.row = row
        worker.first = self._first_request(row)
        notify = worker.notify

        def beat() -> None:
            row.beat()
            notify()

        worker.notify = beat
        row.set_ready()

    def _first_request(self, row: WorkerRecord) -> FirstRequest | None:
        if not self._is_ours or self._settings.memory_guard == "off":
            return None
        return FirstRequest(self.board, row, self._worker_bytes, MemoryGauge().read)

    def worker_exit(self, server: Any, worker: Any) -> None:
        """Record that a worker ends by itself."""
        row = self.board.record_of(worker.age)
        if row is not None:
            row.leave()

    def child_exit(self, server: Any, worker: Any) -> None:
        """Take the row of a worker that has ended; see that the monitor is there."""
        if worker.aborted:
            # gunicorn has logged it.
            self.board.events.add(f"worker killed: no heartbeat for {self.timeout} s")
        self.board.release(worker.age)
        self.monitor.keep()

    def on_exit(self, server: Any) -> None:
        """End the monitor with the server, and a launcher that is gunicorn's own in its time."""
        self.monitor.stop()
        if not self._is_ours:
            process_end.limit(self._settings.graceful_timeout)

    def _settle(self) -> None:
        """Give up, in the monitor, the privileges that workers give up."""
        set_owner_process(self._cfg.uid, self._cfg.gid, initgroups=self._cfg.initgroups)

    def chain_into(self, cfg: Any) -> None:
        """Set these hooks, each followed by the one that the settings have."""
        self._cfg = cfg
        for name in _HOOKS:
            setting = cfg.settings[name]
            hook, theirs = getattr(self, name), setting.get()
            cfg.set(name, hook if theirs is setting.default else _chain(hook, theirs))
        # Last of all: what the user's hook starts must not inherit it.
        cfg.set("pre_fork", _chain(cfg.settings["pre_fork"].get(), _hold_signals))


_BEYOND_SELECT = (
    "gunicorn's sync workers crash on file descriptors above 1,023, and the loaded app keeps that "
    "many files open. Use flask serve-prod, NOW_LMS_PRELOAD=off or 2 threads."
)


def is_master() -> bool:
    """Return whether this process is gunicorn's master, past its hook ``on_starting``."""
    return isinstance(getattr(signal.getsignal(signal.SIGHUP), "__self__", None), Arbiter)


def _is_beyond_select(listeners: Iterable[Any]) -> bool:
    """Return whether gunicorn's sync worker would wait for a number that select() cannot take."""
    # A worker opens a file for its heartbeats, and then the pipe that it waits for, too.
    pipe = os.pipe()
    for descriptor in pipe:
        os.close(descriptor)
    return any(number > 1023 for number in (*pipe, *(item.fileno() for item in listeners)))


def _hold_signals(server: Any, worker: Any) -> None:
    hold_signals()


_HOOKS = (
    "when_ready",
    "pre_fork",
    "post_fork",
    "post_worker_init",
    "worker_exit",
    "child_exit",
    "on_exit",
)


def _chain(ours: Callable[..., None], theirs: Callable[..., None]) -> Callable[..., None]:
    # gunicorn counts the arguments of a hook, which wraps() keeps.
    @wraps(ours)
    def both(*args: Any) -> None:
        ours(*args)
        theirs(*args)

    return both
