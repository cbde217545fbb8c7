"""The process that watches the server: it needs no worker, and outlives the master.

It is forked before the workers, before the threads of the server and before the listener is
opened, and holds no port of the app.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from ..errors import WorkerSizeStartError
from ..log import logger, say, say_if_read
from ..resources.process_handle import ProcessHandle, end_all
from ..resources.processes import may_set_nice
from ..runtime.fork import give_up_streams
from ..runtime.polling import wait_readable
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import State
from .loop import MonitorLoop

TURN_SECONDS = 0.25
"""How soon the monitor sees the end of its master."""

ORPHAN_SECONDS = 2.0
"""How long workers whose master was killed may finish what they do: then their port is needed."""

_AGAIN_SECONDS = 5.0
"""How long a monitor that ended right after its start is left alone."""

_NICE = -10
"""Priority of the monitor: it needs little, and that at once."""

_IGNORED = (
    *("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2"),
    *("SIGTTIN", "SIGTTOU", "SIGWINCH"),
)
"""Signals that reach a whole process group, and that are meant for the master."""


class Port:
    """What a monitor serves in a thread; nothing in this base class."""

    is_held = True
    """Whether the master holds the listeners, too, so that a probe waits for the next monitor
    instead of being refused. A master that may notice the death of its monitor late must not:
    probes would go unanswered."""

    def open(self) -> Sequence[socket.socket]:
        """Open the listeners, in the master; again after they were closed."""
        return ()

    def serve(self, listeners: Sequence[socket.socket]) -> AbstractContextManager[object]:
        """Serve them, in the monitor, until the context is left."""
        return nullcontext()


class Monitor:
    """The monitor, seen from its master; without ``os.fork`` there is none.

    ``make_loop`` and ``settle`` are called in the monitor's process: one makes its loop, the other
    drops privileges.
    """

    def __init__(
        self,
        board: Scoreboard,
        make_loop: Callable[[], MonitorLoop],
        port: Port,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._board = board
        self._make_loop = make_loop
        self._port = port
        self._settle = settle
        self._listeners: Sequence[socket.socket] = ()
        self._master = os.getpid()
        self._life: int | None = None
        self._is_wanted = False
        self._started_at = float("-inf")
        self._died_early = False
        self._status: int | None = None
        self.pid: int | None = None

    def start(self) -> None:
        """Start the monitor, for the first time before anything else is forked."""
        if not hasattr(os, "fork"):
            return
        is_first = not self._is_wanted
        if is_first:
            # The collector would write to every object that was loaded, and unshare its page.
            gc.freeze()
        self._is_wanted = True
        self._started_at = time.monotonic()
        self._listeners = self._listeners or self._port.open()
        life, end = os.pipe()
        # Until the monitor has handlers of its own, a signal must not reach those of the master.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if not pid:
                os.close(life)
                self._live(before, is_first)
        except OSError:
            os.close(life)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(end)
        self.pid, self._life = pid, life
        if not self._port.is_held:
            self.close_port()

    def keep(self) -> None:
        """Start the monitor again if it has died; cheap enough to be called often."""
        if not self._is_wanted or os.getpid() != self._master or self._is_alive():
            return
        age = time.monotonic() - self._started_at
        if self._died_early and age < _AGAIN_SECONDS:
            # Nothing answers for a while: better refuse a probe than let it wait.
            self.close_port()
            return
        self._died_early = age < 2 * _AGAIN_SECONDS
        if self._life is not None:
            self._forget()
            line = f"monitor died{_cause(self._status)}; restarting."
            self._board.events.tell(logging.WARNING, line)
        try:
            self.start()
        except (OSError, WorkerSizeStartError) as error:
            # No process, descriptor or port to be had: the server goes on, and tries again.
            self.close_port()
            reason = error.strerror if isinstance(error, OSError) else error.message
            say(logging.WARNING, f"cannot start the monitor, will retry: {reason}")

    def reap(self) -> None:
        """Collect the exit status of a monitor before code that waits for any child does."""
        if os.getpid() == self._master:
            self._wait(os.WNOHANG)

    def close_port(self) -> None:
        """Close this process' copies of the listeners."""
        for listener in self._listeners:
            listener.close()
        self._listeners = ()

    def stop(self) -> None:
        """End the monitor with the server; in a process that is not its master, do nothing."""
        if os.getpid() != self._master:
            return
        self.close_port()
        self._board.state = State.STOPPED
        self._is_wanted = False
        deadline = time.monotonic() + 1
        while self._life is not None and not _is_closed(self._life, 0.1):
            if self.pid is not None and time.monotonic() > deadline:
                # It cannot be another process: its end of the pipe is open.
                os.kill(self.pid, signal.SIGKILL)
        self._forget()

    def _is_alive(self) -> bool:
        """Return whether the monitor lives: the other end of a pipe closes with it."""
        return self._life is not None and not _is_closed(self._life, 0)

    def _forget(self) -> None:
        if self._life is not None:
            os.close(self._life)
            self._life = None
        self._wait()

    def _wait(self, flags: int = 0) -> None:
        """Wait for the monitor's end, and keep its status unless other code has collected it."""
        if self.pid is None:
            return
        try:
            ended, status = os.waitpid(self.pid, flags)
            self._status = os.waitstatus_to_exitcode(status) if ended else None
        except ChildProcessError:
            ended, self._status = self.pid, None
        if ended:
            self.pid = None

    def _live(self, mask: Iterable[int], is_first: bool) -> None:
        """Be the monitor. A status of 3 or 4 would stop gunicorn 26, which takes it for a worker's.

        Nothing of the launcher's frames, exit handlers or buffers is this process' to end.
        """
        status = 1
        try:
            gc.freeze()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for name in _IGNORED:
                signal.signal(getattr(signal, name), signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            give_up_streams([listener.fileno() for listener in self._listeners])
            # Before computing workers, if we may (root, outside most containers). A filter of
            # system calls may kill for it, so a monitor that replaces another goes without.
            if is_first and may_set_nice(_NICE):
                with suppress(OSError):
                    os.nice(_NICE)
            self._settle()
            self._loop()
            status = 0
        except BaseException:
            with suppress(Exception):
                logger.exception("The monitor failed.")
        finally:
            os._exit(status)

    def _loop(self) -> None:
        loop = self._make_loop()
        with self._port.serve(self._listeners):
            while os.getppid() == self._master and self._board.state != State.STOPPED:
                time.sleep(min(loop.run(), TURN_SECONDS))
        try:
            loop.end()
        finally:
            if self._board.state != State.STOPPED:
                self._end_orphans()

    def _end_orphans(self) -> None:
        """End workers that have lost their master: they would hold the port against the next."""
        rows = [row for row in self._board.read().workers if row.pid not in (0, self._master)]
        end_all([ProcessHandle(row.pid, row.start_time) for row in rows], ORPHAN_SECONDS)
        if rows:
            # Not before, and only without blocking: the reader of the log may be gone, too.
            ended = f"ended its {len(rows)} workers to free their port"
            say_if_read(logging.WARNING, f"the master was killed; {ended}.")


def _cause(status: int | None) -> str:
    """Return what to add to the line about a death: the signal, if one did it and it is known."""
    if status is None or status >= 0:
        return ""
    name = next((item.name for item in signal.Signals if item == -status), f"signal {-status}")
    hint = ", sent by a filter such as SystemCallFilter=" if name == "SIGSYS" else ""
    return f" ({name}{hint})"


def _is_closed(pipe: int, seconds: float) -> bool:
    """Return whether the other end of a pipe without writers is closed."""
    return bool(wait_readable([pipe], seconds))
