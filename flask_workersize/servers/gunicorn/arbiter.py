"""gunicorn's master, made to stop without losing a request.

It overrides what gunicorn does not document; tests/servers/test_canary_stopping.py lists it.
"""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import time
from typing import Any, ClassVar

import psutil
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from ...log import say
from ...runtime.snapshot import State
from .. import systemd
from ..ending import STUCK_SECONDS, WORKER_SECONDS, process_end
from ..stopping import StopSignal, connections_to_accept
from .graceful_worker import GracefulWorker
from .hooks import Hooks
from .options import warn_of_hup

_PAUSE_SECONDS = 0.1
"""How long gunicorn waits at most between two workers that it starts."""

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class GracefulArbiter(Arbiter):
    """gunicorn's master: it blocks new connections before it stops its workers."""

    app: Any
    log: Any
    WORKERS: ClassVar[dict[int, Any]]
    _has_failed = False
    _stops = _is_bounded = False

    def __init__(self, app: Any, hooks: Hooks, drain_seconds: int) -> None:
        self._hooks = hooks
        self._launcher = os.getpid()
        self._drain_seconds = drain_seconds
        self._drain_until = math.inf
        self._watchdog = systemd.Watchdog(hooks.board, hooks.timeout)
        self.stop_signal = GracefulWorker.stop_signal = StopSignal()
        super().__init__(app)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop, and remember whether that is because no worker can be started."""
        self._leave_if_forked()
        self._has_failed = exit_status != 0
        process_end.status = exit_status
        super().halt(reason, exit_status)

    def signal(self, sig: int, frame: Any) -> None:
        """Queue a signal; one that stops bounds the end, even if a log without a reader blocks."""
        if sig in _STOPS and not self._is_bounded:
            self._is_bounded = True
            drain_seconds = self._drain_seconds if sig == signal.SIGTERM else 0
            self._bound_end(drain_seconds + self.cfg.graceful_timeout)
        super().signal(sig, frame)

    @staticmethod
    def _bound_end(seconds: float) -> None:
        process_end.start(seconds, margin=WORKER_SECONDS + STUCK_SECONDS)

    def stop(self, graceful: bool = True) -> None:
        """Stop the workers; if gracefully, after all that is queued was served."""
        self._leave_if_forked()
        self._hooks.board.state = State.STOPPING
        if graceful and self.LISTENERS:
            systemd.notify("STOPPING=1")
            sockets = [listener.sock for listener in self.LISTENERS]
            # What systemd has passed on stays open there: the next server takes its queue.
            known = self._hooks.board.listeners
            connections = 0 if self.systemd else connections_to_accept(sockets, known)
            self.stop_signal.send(connections)
            missed = all(worker.is_leaving[0] for worker in self.WORKERS.values())
            if missed and connections and not self._has_failed:
                # Every worker has just ended by itself: the queue needs one more.
                self.spawn_worker()
        if not self._stops:
            self._stops = self._is_bounded = True
            self._bound_end(self.cfg.graceful_timeout)
            # Workers end by themselves when the time is over, and run their exit handlers then.
            self.cfg.set("graceful_timeout", self.cfg.graceful_timeout + int(WORKER_SECONDS))
        while True:
            try:
                super().stop(graceful)
            except HaltServer:
                # Another worker could not load the app; gunicorn would end with a traceback.
                continue
            return

    def kill_workers(self, sig: int) -> None:
        """Signal all workers; SIGQUIT is what a second Ctrl-C becomes."""
        if sig == signal.SIGQUIT:
            process_end.hurry(margin=WORKER_SECONDS + STUCK_SECONDS)
        super().kill_workers(sig)

    def _leave_if_forked(self) -> None:
        """End a worker that has come here by what a hook of the user's has raised."""
        if os.getpid() != self._launcher:
            process_end.leave(1)

    def spawn_worker(self) -> Any:
        """Fork a worker; many take a while."""
        self._watchdog.beat()
        return super().spawn_worker()

    def _has_ended_ready(self, worker: Any) -> bool:
        """Return whether a worker was ready and is gone, although its record is still held."""
        record = self._hooks.board.record_of(worker.age)
        return record is not None and record.is_ready and not psutil.pid_exists(worker.pid)

    def manage_workers(self) -> None:
        """Keep the number of workers, and the monitor."""
        self._hooks.monitor.keep()
        self.num_workers = self._hooks.board.wanted
        surplus = len(self.WORKERS) - self.num_workers
        if surplus > 0:
            # Workers chosen by the monitor leave by themselves; for the rest the oldest go.
            self.num_workers += min(self._leaving(), surplus)
        super().manage_workers()
        self.num_workers = self._hooks.board.wanted

    def _leaving(self) -> int:
        ages = {worker.age for worker in self.WORKERS.values()}
        rows = self._hooks.board.read().workers
        return sum(row.is_leaving and row.age in ages for row in rows)

    def reap_workers(self) -> None:
        """Reap ended workers; reload and stop call this repeatedly while they wait."""
        self._hooks.monitor.reap()
        self._reap()
        self._hooks.monitor.keep()
        self._watchdog.beat()

    def _reap(self) -> None:
        """Reap; a worker that was ready has not failed to boot, whatever its exit status is."""
        while True:
            workers = dict(self.WORKERS)
            try:
                return super().reap_workers()
            except HaltServer:
                pid = next((pid for pid in workers if self._has_ended_ready(workers[pid])), None)
                if pid is None:
                    raise
                self.WORKERS.pop(pid, None)
                workers[pid].tmp.close()
                self.cfg.child_exit(self, workers[pid])

    def spawn_workers(self) -> None:
        """Start missing workers, with gunicorn's pauses; fewer may be wanted by then.

        The first requests may show that not all of them fit into memory.
        """
        for number in range(self.num_workers - len(self.WORKERS)):
            if number:
                time.sleep(_PAUSE_SECONDS * random.random())
            if len(self.WORKERS) >= self._hooks.board.wanted:
                return
            self.spawn_worker()

    def handle_ttin(self) -> None:
        """Plan one more worker."""
        self._hooks.board.planned += 1
        self.manage_workers()

    def handle_ttou(self) -> None:
        """Plan one worker fewer, but at least one."""
        self._hooks.board.planned = max(1, self._hooks.board.planned - 1)
        self.manage_workers()

    def handle_term(self) -> None:
        """Stop; if a drain is set, go on serving before, while ``/ready`` already fails."""
        if self._drain_until < math.inf or not self._drain_seconds:
            raise StopIteration
        self._drain_until = time.monotonic() + self._drain_seconds
        self._hooks.board.state = State.DRAINING
        systemd.notify("STOPPING=1")
        say(logging.INFO, f"Draining for {self._drain_seconds} s")

    def wait_for_signals(self, timeout: float | None = 1.0) -> Any:
        """Wait for signals; the end of the drain is one."""
        self._watchdog.beat()
        left = self._drain_until - time.monotonic()
        if left <= 0:
            return [signal.SIGTERM]
        return super().wait_for_signals(min(self._watchdog.turn_seconds, left))

    def handle_int(self) -> None:
        """Treat the first Ctrl-C as SIGTERM; gunicorn takes a second one for a quick stop."""
        raise StopIteration

    def handle_hup(self) -> None:
        """Reload, and log what a reload cannot do."""
        warn_of_hup(self.cfg)
        # A reload starts as many workers as the configuration has.
        self.app.options["workers"] = self._hooks.board.wanted
        systemd.notify_reloading()
        super().handle_hup()
        systemd.notify("READY=1")

    def handle_usr2(self) -> None:
        """Refuse a second master: it would plan again and share this one's ports."""
        say(
            logging.WARNING,
            "USR2 ignored: a second master would make its own plan and share the ports. Restart "
            "the service instead; no request is lost.",
        )
