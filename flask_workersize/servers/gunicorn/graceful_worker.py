"""What both kinds of gunicorn's workers add, to stop without losing a request.

It overrides what gunicorn does not document; tests/servers/test_canary_stopping.py lists it.
"""

from __future__ import annotations

import atexit
import math
import mmap
import os
import signal
import time
from typing import Any

from gunicorn import util
from gunicorn.workers.base import Worker

from ...runtime.polling import wait_readable
from ...runtime.threads import start_thread
from ...runtime.worker_record import WorkerRecord
from ..ending import GRACE_SECONDS, process_end
from ..silence import HEADER_SECONDS, stop_listening_to
from ..stopping import (
    SETTLE_SECONDS,
    SILENCE_SECONDS,
    StopSignal,
    hang_up_if_silent,
)
from .goodbye import Goodbyes

_CUT_EVERY_SECONDS = 0.1

_SELDOM_SECONDS = 1.0
"""How often a worker checks for clients that keep it waiting; sooner if one is about to."""

_MOMENT_SECONDS = 0.05
"""A connection that waits longer has not just come: there is no worker that takes it at once."""

OFTEN_SECONDS = 0.25
"""How often it checks for them while there are some, and for queued clients that have gone."""


class GracefulWorker(Worker):
    """What both kinds of worker add to gunicorn's."""

    stop_signal: StopSignal
    row: WorkerRecord | None = None
    goodbyes: Goodbyes
    _has_goodbye_thread = False
    _asked_to_stop = False
    _in_a_hurry = False
    _alive = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.is_leaving = mmap.mmap(-1, 1)

    def init_process(self) -> None:
        """Watch for the stop of the server, then start as gunicorn's."""
        # Each with how long it may be silent during a stop.
        self._open: dict[Any, float] = {}
        # Those that owe a header, each with the moment by which it has to be there.
        self._due: dict[Any, float] = {}
        self.goodbyes = Goodbyes(has_thread=self._has_goodbye_thread)
        util.close_graceful = self.goodbyes.take  # type: ignore[assignment]
        start_thread("stop", self._hang_up_silent)
        self._pid = os.getpid()
        process_end.adopt(self.cfg.graceful_timeout, self._count_running)
        atexit.register(self._note_leaving)
        super().init_process()

    @property
    def alive(self) -> bool:
        """Whether this worker goes on; gunicorn sets it when a signal or a limit ends it."""
        return self._alive

    @alive.setter
    def alive(self, value: bool) -> None:
        self._alive = value
        if not value:
            process_end.begin()

    def _are_others_waiting(self) -> bool:
        """Return whether requests wait at this moment for a thread that is free."""
        return bool(wait_readable(self.sockets, 0))

    def _is_in_the_way(self) -> bool:
        """Return whether a client that is waited for keeps others waiting, or this worker's end."""
        return not self.alive or self._are_others_waiting()

    def _count_running(self) -> int:
        return self.row.running() if self.row is not None else 0

    def _note_leaving(self) -> None:
        """Note that this worker ends by itself, also if its time is over amid a request."""
        if self.row is not None and self._pid == os.getpid():
            self.row.leave()

    def init_signals(self) -> None:
        """Leave Ctrl-C to the master: it reaches the whole process group."""
        super().init_signals()
        # A handler, not SIG_IGN, which programs started by the app would inherit.
        signal.signal(signal.SIGINT, lambda signum, frame: None)
        signal.siginterrupt(signal.SIGINT, False)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Note that the stop came from a signal, not from ``max_requests``."""
        self._asked_to_stop = True
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End at once, with whatever is queued."""
        self._in_a_hurry = True
        process_end.hurry(margin=GRACE_SECONDS)
        super().handle_quit(sig, frame)

    def _server_stops(self) -> bool:
        """Return whether the queue is to be served because the server stops.

        A service manager may signal all processes at once, so that the master is a moment behind.
        If it gets the signal after the last check here, it sees that this worker is leaving.
        """
        if self._in_a_hurry:
            return False
        is_recycled = self.row is not None and self.row.is_told_to_leave
        is_unsure = self._asked_to_stop and not is_recycled
        if self.stop_signal.wait(SETTLE_SECONDS if is_unsure else 0):
            return True
        self.is_leaving[0] = 1
        return self.stop_signal.is_sent()

    def _say_goodbye(self) -> None:
        """Before the end, leave clients that are still sending a moment to finish."""
        self.goodbyes.finish(0 if self._in_a_hurry else SILENCE_SECONDS)

    def _hang_up_late(self) -> float:
        """Close connections that keep others waiting, and return when to check again.

        Those that keep no one waiting are closed in time, too: the master kills a worker of one
        thread that has not finished with its client. ``self.timeout`` is half of that time.
        """
        now = time.monotonic()
        due = self._due.copy()
        late = [connection for connection, until in due.items() if until <= now]
        if late and self._is_in_the_way():
            # If other workers are free, they take what comes within a moment.
            time.sleep(_MOMENT_SECONDS)
            if not self._is_in_the_way():
                late = []
        elif self.timeout:
            late = [conn for conn in late if due[conn] <= now + HEADER_SECONDS - self.timeout]
        else:
            late = []
        for connection in late:
            # It may have been served in between, and have come back.
            if self._due.get(connection, math.inf) <= now:
                stop_listening_to(getattr(connection, "sock", connection))
        if late:
            return _CUT_EVERY_SECONDS
        soonest = min(due.values(), default=now + _SELDOM_SECONDS) - now
        return min(max(soonest, OFTEN_SECONDS), _SELDOM_SECONDS)

    def _hang_up_silent(self) -> None:
        """Keep silent clients from holding others, or a stop, in a thread: the main one waits."""
        pause = _SELDOM_SECONDS
        while not self.stop_signal.wait(pause):
            pause = self._hang_up_late()
        time.sleep(SILENCE_SECONDS)
        while True:
            for connection, patience in self._open.copy().items():
                # gthread's own connection changes its socket where TLS starts.
                hang_up_if_silent(getattr(connection, "sock", connection), patience)
            time.sleep(_CUT_EVERY_SECONDS)
