"""The end of a process, within its time.

Python ends when every non-daemon thread has ended, and after its exit handlers. A thread of
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
from functools import partial
from typing import Any, NoReturn

import click

from ..log import say
from ..runtime.threads import start_thread

GRACE_SECONDS = 1.0
"""Least time for threads: idle pools end as soon as Python requests it."""

EXIT_SECONDS = 2.0
"""Time for exit handlers when the graceful timeout is over."""

_LOOK_SECONDS = 1.0
_LOG_SECONDS = 0.5

WORKER_SECONDS = GRACE_SECONDS + EXIT_SECONDS + 2 * _LOG_SECONDS + 1.0
"""How long after the graceful timeout a worker may take to end, on a busy machine, too."""

STUCK_SECONDS = 3.0
"""How long after that a launcher may take to stop, its monitor included."""

_MOST_NAMES = 5
_wait_for_threads = threading._shutdown  # type: ignore[attr-defined]


class _TimeIsOver(BaseException):
    """Ends the wait for threads, and an exit handler; raised in the main thread alone."""


class ProcessEnd:
    """How long the end of this process may take, and with which status it ends.

    There is one, :data:`process_end`; a worker makes it its own by :meth:`adopt`. Other forks, the
    app's, end as they always did.
    """

    status: int
    """Exit status if the process is cut short."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.status = self._depth = 0
        self._pid = os.getpid()
        self._running: Callable[[], int] = lambda: 0
        self._seconds: float | None = None
        self._limit: float | None = None
        self._until = -math.inf
        self._cut_at = math.inf
        self._known: set[threading.Thread] | None = None
        self._awaited: list[threading.Thread] = []
        self._has_left_threads = self._is_watched = False
        self._is_cuttable = self._is_poked = False
        self._ends = threading.Event()
        self._is_taken = threading.Lock()

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Bound the end that follows a command; the outermost counts.

        Threads that are started later, after it, are waited for as usual.
        """
        # Python calls this at its end, and by its name.
        threading._shutdown = self._leave_threads  # type: ignore[attr-defined]
        if not self._depth or self._pid != os.getpid():
            self._reset()
        self._depth += 1
        try:
            yield
        except BaseException as error:
            self.status = status_of(error)
            if isinstance(error, KeyboardInterrupt):
                self.hurry(margin=math.inf)
            raise
        finally:
            self._depth -= 1
            if not self._depth:
                # From here on the main thread is the caller's again, and is never cut short.
                self._cut_at = math.inf
                self._known = set(threading.enumerate())
                # Not before, where forks follow; nor later, as Python 3.12 starts none at its end.
                self._watch()

    def limit(self, seconds: float) -> None:
        """Bound the end that has begun, of a launcher that is not ours.

        :param seconds: how long the app's threads may go on
        """
        threading._shutdown = self._leave_threads  # type: ignore[attr-defined]
        self._reset()
        self.start(seconds, STUCK_SECONDS)

    def adopt(self, seconds: float, running: Callable[[], int]) -> None:
        """Make it this worker's own.

        :param seconds: how long a stop may take
        :param running: returns how many requests run
        """
        self._reset()
        self._limit = seconds
        self._running = running

    def begin(self) -> None:
        """Note that a worker's stop begins; only the first time counts."""
        if self._until == -math.inf and self._limit is not None:
            self.start(self._limit)

    def start(self, seconds: float, margin: float = 0.0) -> None:
        """Note that a stop begins, in a signal handler, too.

        :param seconds: how long the app's threads may go on
        :param margin: how many seconds more the main thread may take before it is cut short
        """
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._cut_at = self._until + margin
        self._watch()

    def hurry(self, margin: float) -> None:
        """Note a second Ctrl-C: end without listing what still runs."""
        self.start(0, margin)
        self._seconds = None

    def leave(self, status: int) -> NoReturn:
        """End a process as Python does: wait for threads, run exit handlers, flush.

        It unwinds none of the frames that it has inherited from its parent.
        """
        self.status = status
        self.begin()
        try:
            self._leave_threads()
        finally:
            try:
                atexit._run_exitfuncs()
                _flush()
            finally:
                os._exit(status)

    def _leave_threads(self) -> None:
        """Wait for threads until their time is over; exit handlers follow."""
        if self._pid != os.getpid() or self._has_left_threads:
            _wait_for_threads()
            return
        if not self._is_taken.acquire(blocking=False):
            # The process is being cut short: exit handlers run only once.
            threading.Event().wait()
        self._until = max(self._until, time.monotonic() + GRACE_SECONDS)
        if self._known is not None:
            self._awaited = [item for item in _lasting() if item not in self._known]
        signal.signal(signal.SIGINT, self._interrupt)
        sys.unraisablehook = _ignore_our_own(sys.unraisablehook)
        try:
            self._is_cuttable = True
            self._ends.set()
            _wait_for_threads()
        except _TimeIsOver:
            pass
        finally:
            self._is_cuttable = False
            self._has_left_threads = True
        if time.monotonic() >= self._until:
            self._name_threads()

    def _interrupt(self, signum: int, frame: Any) -> None:
        is_poked, self._is_poked = self._is_poked, False
        if is_poked:
            if not self._is_cuttable:
                return
        elif self._limit is None:
            self._seconds = None
        else:
            # It is Ctrl-C, which a worker leaves to its launcher.
            return
        self._is_cuttable = False
        raise _TimeIsOver

    def _poke(self) -> None:
        if self._is_cuttable and hasattr(signal, "pthread_kill"):
            self._is_poked = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _watch(self) -> None:
        if not self._is_watched and self._pid == os.getpid():
            # First of all: a signal may arrive during this, and call it.
            self._is_watched = True
            self._is_watched = start_thread("end", self._end_in_time, self._ends) is not None

    def _end_in_time(self, ends: threading.Event) -> None:
        """Cut the main thread short: a stop, its wait for threads, and its exit handlers."""
        while not ends.wait(max(0.0, min(_LOOK_SECONDS, self._cut_at - time.monotonic()))):
            if self._ends is not ends:
                # The program serves once more, and another thread watches that.
                return
            if time.monotonic() >= self._cut_at and self._is_taken.acquire(blocking=False):
                self._cut()
        for thread in self._awaited:
            thread.join()
        time.sleep(max(0.0, self._until - time.monotonic()))
        self._poke()
        time.sleep(EXIT_SECONDS)
        if self._has_left_threads:
            _try(partial(self._say, "while its exit handlers still run"), _LOG_SECONDS)
            # The others still run, and the status is the one of whatever ends the program.
            self._is_cuttable = True
            self._poke()
            time.sleep(_LOG_SECONDS)
        self._cut()

    def _cut(self) -> None:
        """End, whatever the main thread does; its exit handlers had their time if it ran them."""
        if not self._has_left_threads:
            _try(self._name_threads, _LOG_SECONDS)
            _try(_run_exit_handlers, EXIT_SECONDS)
            _try(_flush, _LOG_SECONDS)
        os._exit(self.status)

    def _name_threads(self) -> None:
        if count := self._running():
            self._say(f"with {count} {'request' if count == 1 else 'requests'} still running")
            return
        is_main = threading.current_thread() is threading.main_thread()
        left = _lasting() or ([] if is_main else [threading.main_thread()])
        if left:
            names = ", ".join(repr(item.name[:50]) for item in left[:_MOST_NAMES])
            more = f" and {len(left) - _MOST_NAMES} more" if len(left) > _MOST_NAMES else ""
            threads = "thread" if len(left) == 1 else "threads"
            self._say(f"with {threads} {names}{more} still running")

    def _say(self, left: str) -> None:
        if self._seconds is not None:
            over = f"graceful timeout ({self._seconds:g} s) is over"
            say(logging.WARNING, f"{over}: ending process {self._pid} {left}.")


process_end = ProcessEnd()


def status_of(error: BaseException) -> int:
    """Return the status with which Python, or click, ends for an exception."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, click.ClickException | click.exceptions.Exit):
        return error.exit_code
    return 1


def _lasting() -> list[threading.Thread]:
    """Return the threads that Python waits for at its end."""
    main = threading.main_thread()
    return [item for item in threading.enumerate() if not item.daemon and item is not main]


def _try(work: Callable[[], object], seconds: float) -> None:
    """Do what must not keep the process: each may wait for a thread, or for a full pipe."""
    if thread := start_thread("last", work):
        thread.join(seconds)


def _run_exit_handlers() -> None:
    if hasattr(signal, "pthread_sigmask"):
        # What they start would inherit that this thread blocks all signals.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    atexit._run_exitfuncs()


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
