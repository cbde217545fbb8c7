"""What is done at gunicorn's public hooks ("Server Hooks" in its docs), however it was started.

The master gives a worker its row before the fork and takes it when the worker has ended; the worker
fills it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import wraps
from typing import Any

from gunicorn.util import set_owner_process

from ...app_state import adopt_current
from ...monitor.scaling import ArbiterScaler, SignalScaler, raise_oom_score
from ...runtime.deployment import Deployment, current
from ...runtime.fork import after_fork
from ...runtime.meter import Meter, contained
from ...runtime.scoreboard import Scoreboard
from ...runtime.snapshot import State
from ..health_port import make_monitor, open_health_port
from ..listeners import close_listeners
from ..proxy import note_kept_connections, trusting


class Hooks:
    """The hooks of one deployment."""

    def __init__(self, deployment: Deployment, board: Scoreboard, is_ours: bool = True) -> None:
        self.board = board
        self.port = open_health_port(deployment.settings)
        make_scaler = ArbiterScaler if is_ours else SignalScaler
        self.monitor = make_monitor(deployment, board, self.port, make_scaler, self._settle)
        self._settings = deployment.settings
        self._is_ours = is_ours
        self._keeps_connections = deployment.plan.worker_class == "gthread"
        # gunicorn's own threads accept more than they can serve, and tell nobody.
        self._knows_queue = is_ours or deployment.plan.worker_class == "sync"

    def when_ready(self, server: Any) -> None:
        """Say in the scoreboard that the server serves, and where."""
        if not self._is_ours:
            for number in STOP_SIGNALS:
                _keep_from_children(number)
        if self._knows_queue:
            self.board.set_listeners([listener.sock for listener in server.LISTENERS])
        self.board.state = State.SERVING
        if self._keeps_connections:
            note_kept_connections(self._settings, server.cfg.keepalive, "gunicorn's --keep-alive")

    def pre_fork(self, server: Any, worker: Any) -> None:
        """Give a worker its row; see that the monitor is there."""
        self.monitor.keep()
        self.board.sweep(other.age for other in server.WORKERS.values())
        self.board.allocate(worker.age)

    def post_fork(self, server: Any, worker: Any) -> None:
        """Give a worker connections of its own, and keep it from holding the health port."""
        for number in STOP_SIGNALS:
            # Until a worker has handlers of its own it has the master's, which would swallow a
            # stop.
            signal.signal(number, signal.SIG_DFL)
        # What climbs out of a worker would run the stop of gunicorn's master there.
        worker.init_process = contained(worker.init_process, (Exception, SystemExit))
        close_listeners(self.port)
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
        row = self.board.record_of(worker.age)
        if row is None:
            return
        worker.wsgi = Meter(worker.wsgi, row)
        worker.row = row
        notify = worker.notify

        def beat() -> None:
            row.beat()
            notify()

        worker.notify = beat
        row.set_ready()

    def worker_exit(self, server: Any, worker: Any) -> None:
        """Say that a worker ends by its own will."""
        row = self.board.record_of(worker.age)
        if row is not None:
            row.leave()

    def child_exit(self, server: Any, worker: Any) -> None:
        """Take the row of a worker that has ended; see that the monitor is there."""
        self.board.release(worker.age)
        self.monitor.keep()

    def on_exit(self, server: Any) -> None:
        """End the monitor with the server."""
        self.monitor.stop()
        close_listeners(self.port)

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


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that end a worker."""


def _keep_from_children(number: int) -> None:
    """Let a handler of the master be the master's alone: a child that was just forked ends.

    Our own master blocks signals around a fork; gunicorn's would swallow a stop there.
    """
    master, handler = os.getpid(), signal.getsignal(number)

    def handle(signum: int, frame: Any) -> None:
        if os.getpid() != master:
            os._exit(0)
        if callable(handler):
            handler(signum, frame)

    signal.signal(number, handle)


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
