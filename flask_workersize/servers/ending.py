"""The end of a process, within its time.

Python ends when every thread has ended that is no daemon, and after its exit handlers. A thread of
the app may never end, and a handler may wait for one.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from ..log import say

GRACE_SECONDS = 1.0
"""What threads get at least: idle pools end as soon as Python asks them to."""

EXIT_SECONDS = 2.0
"""What exit handlers get when the time is over."""

_LOOK_SECONDS = 1.0
_LOG_SECONDS = 0.5

WORKER_SECONDS = _LOOK_SECONDS + EXIT_SECONDS + 1.0
"""How long after the graceful timeout a worker may take to end."""

STUCK_SECONDS = 3.0
"""How long after that a launcher may take to stop, its monitor included."""

_MOST_NAMES = 5
_wait_for_threads = threading._shutdown  # type: ignore[attr-defined]


class _TimeIsOver(BaseException):
    """Ends the wait for threads; raised in the main thread alone."""


class ProcessEnd:
    """How long the end of this process may take, and with which status it ends.

    There is one, :data:`process_end`; a worker makes it its own by :meth:`watch`. Other forks, the
    app's, end as they always did.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self._pid = os.getpid()
        self._seconds: float | None = None
        self._limit: float | None = None
        self._until = -math.inf
        self._cut_at = math.inf
        self._has_left_threads = False
        self._is_waiting = False
        self._is_limited = False
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._is_taken = threading.Lock()

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Bound the end that follows a command; its status is what the command ended with."""
        # Python calls this at its end, and by its name.
        threading._shutdown = self._leave_threads  # type: ignore[attr-defined]
        self._reset()
        try:
            yield
        except BaseException as error:
            self.status = _status_of(error)
            if isinstance(error, KeyboardInterrupt):
                self.hurry(margin=math.inf)
            raise
        finally:
            # From here on the main thread is the caller's again, and is never cut short.
            self._cut_at = math.inf
            # Not at the end itself, where Python 3.12 starts no thread any more.
            self._limit_end()

    def watch(
        self, stops: Callable[[], bool] = lambda: False, seconds: float | None = None
    ) -> None:
        """Cut a stop short, from a thread of its own, if the main thread cannot end it in time.

        :param stops: whether a stop has begun that nobody notes by :meth:`start`
        :param seconds: how long such a stop may take
        """
        if self._pid != os.getpid():
            self._reset()
        self._limit = seconds
        self._start_thread(self._watch, stops)

    def start(self, seconds: float, margin: float = 0.0) -> None:
        """Note that a stop begins, in a signal handler, too.

        :param seconds: how long the app's threads may go on
        :param margin: how many seconds more the main thread may take before it is cut short
        """
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._cut_at = self._until + margin

    def hurry(self, margin: float) -> None:
        """Note that a person does not want to wait: nothing that still runs is mentioned."""
        self.start(0, margin)
        self._seconds = None

    def leave(self, status: int) -> NoReturn:
        """End a process as Python does: wait for threads, run exit handlers, flush.

        It unwinds none of the frames that it has inherited from its parent.
        """
        self.status = status
        if self._until == -math.inf and self._limit is not None:
            self.start(self._limit)
        self._limit_end()
        try:
            self._leave_threads()
        finally:
            try:
                atexit._run_exitfuncs()
                _flush()
            finally:
                os._exit(status)

    def _leave_threads(self) -> None:
        """Wait for threads, as long as they have time; exit handlers follow."""
        if self._pid != os.getpid() or self._has_left_threads:
            _wait_for_threads()
            return
        if not self._is_taken.acquire(blocking=False):
            # The process is being cut short: exit handlers run only once.
            threading.Event().wait()
        self._until = max(self._until, time.monotonic() + GRACE_SECONDS)
        self._cut_at = math.inf
        self._is_waiting = True
        before = signal.signal(signal.SIGINT, self._interrupt)
        hook, sys.unraisablehook = sys.unraisablehook, _ignore_our_own(sys.unraisablehook)
        try:
            self._ends.set()
            _wait_for_threads()
        except _TimeIsOver:
            pass
        finally:
            with self._lock:
                self._is_waiting = False
            signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
            sys.unraisablehook = hook
        self._name_threads()
        self._has_left_threads = True

    def _interrupt(self, signum: int, frame: Any) -> None:
        is_over = time.monotonic() >= self._until
        if not is_over and self._limit is None:
            # It was Ctrl-C, which a worker leaves to its launcher.
            self._seconds = None
        if self._is_waiting and (is_over or self._limit is None):
            raise _TimeIsOver

    def _start_thread(self, work: Callable[..., object], *args: object) -> None:
        # Where no thread can be had, the end is as long as it always was.
        with suppress(RuntimeError):
            threading.Thread(target=work, args=args, name="workersize-end", daemon=True).start()

    def _limit_end(self) -> None:
        if not self._is_limited:
            self._is_limited = True
            self._start_thread(self._end_in_time, self._ends)

    def _end_in_time(self, ends: threading.Event) -> None:
        """Interrupt the wait for threads when their time is over, and the exit handlers' later."""
        ends.wait()
        time.sleep(max(0.0, self._until - time.monotonic()))
        with self._lock:
            if self._is_waiting and hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(EXIT_SECONDS)
        self._cut()

    def _watch(self, stops: Callable[[], bool]) -> None:
        while (left := self._cut_at - time.monotonic()) > 0:
            time.sleep(min(_LOOK_SECONDS, left))
            if self._until == -math.inf and self._limit is not None and stops():
                self.start(self._limit)
        if self._is_taken.acquire(blocking=False):
            self._cut()

    def _cut(self) -> None:
        """End, whatever the main thread does; its exit handlers had their time if it ran them."""
        if not self._has_left_threads:
            _try(self._name_threads, _LOG_SECONDS)
            _try(atexit._run_exitfuncs, EXIT_SECONDS)
            _try(_flush, _LOG_SECONDS)
        else:
            _try(self._name_handlers, _LOG_SECONDS)
        os._exit(self.status)

    def _name_threads(self) -> None:
        main, me = threading.main_thread(), threading.current_thread()
        left = [item for item in threading.enumerate() if not item.daemon and item is not me]
        left = [item for item in left if item is not main] or left
        if left and self._seconds is not None:
            names = ", ".join(repr(item.name[:50]) for item in left[:_MOST_NAMES])
            more = f" and {len(left) - _MOST_NAMES} more" if len(left) > _MOST_NAMES else ""
            threads = "thread" if len(left) == 1 else "threads"
            self._say(f"with {threads} {names}{more} still running")

    def _name_handlers(self) -> None:
        if self._seconds is not None:
            self._say("while its exit handlers still run")

    def _say(self, left: str) -> None:
        line = f"graceful timeout ({self._seconds:g} s) is over: ending process {self._pid} {left}."
        say(logging.WARNING, line)


process_end = ProcessEnd()


def status_of(code: Any) -> int:
    """Return the status with which Python ends for the code of a ``SystemExit``."""
    return code if isinstance(code, int) else 0 if code is None else 1


def _status_of(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return status_of(error.code)
    if isinstance(error, click.ClickException | click.exceptions.Exit):
        return error.exit_code
    return 1


def _try(work: Callable[[], object], seconds: float) -> None:
    """Do what must not keep the process: each may wait for a thread, or for a full pipe."""
    thread = threading.Thread(target=work, daemon=True)
    with suppress(RuntimeError):
        thread.start()
        thread.join(seconds)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _ignore_our_own(hook: Any) -> Any:
    """Return a hook that passes on what is not ours: newer Pythons report it, and go on."""

    def ignore(raised: Any) -> None:
        if raised.exc_type is not _TimeIsOver:
            hook(raised)

    return ignore
