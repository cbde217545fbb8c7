"""The process beside the server that watches it: it needs no worker, and outlives the master.

It is forked before the workers, before the threads of the server and before the listener is
opened, and holds no port of the app. Where a system cannot fork, it is a thread.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from ..log import logger, say
from ..resources.process_handle import ProcessHandle, end_all
from ..runtime.fork import give_up_streams
from ..runtime.scoreboard import Scoreboard
from ..runtime.snapshot import State
from .loop import MonitorLoop

ORPHAN_SECONDS = 2.0
"""How long workers whose master was killed may finish what they do: then their port is needed."""

_AGAIN_SECONDS = 5.0
"""How long a monitor that ended right after its start is left alone."""

_NICE = -10
"""Priority of the monitor: it needs little, and that at once."""

_IGNORED = ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU", "SIGWINCH", "SIGQUIT")
"""Signals that reach a whole process group, and that are meant for the master."""


class Probe(Protocol):
    """What answers requests in a thread of its own."""

    def close(self) -> None:
        """Stop answering."""


class NoProbe:
    """Answers nothing: there is no port for it."""

    def close(self) -> None:
        """Do nothing."""


class Monitor:
    """The monitor, as its master has it in hand.

    :param board: the shared table
    :param make_watch: returns what looks around; called in the monitor
    :param open_probe: returns what answers requests; called in the monitor
    :param settle: gives up, in the monitor's process, what is not for it, such as privileges
    :param kept: the sockets that the monitor needs; all others are the app's
    """

    def __init__(
        self,
        board: Scoreboard,
        make_loop: Callable[[], MonitorLoop],
        open_probe: Callable[[MonitorLoop], Probe],
        settle: Callable[[], None] = lambda: None,
        kept: Iterable[socket.socket] = (),
    ) -> None:
        self._board = board
        self._make_watch = make_loop
        self._open_probe = open_probe
        self._settle = settle
        self._kept = [item.fileno() for item in kept]
        self._master = os.getpid()
        self._life: int | None = None
        self._started_at = float("-inf")
        self._died_early = False
        self._is_missing = False
        self.pid: int | None = None

    def start(self) -> None:
        """Start the monitor, for the first time before anything else is forked."""
        if self._started_at == float("-inf"):
            # The collector would write to every object that was loaded, and unshare its page.
            gc.freeze()
        self._started_at = time.monotonic()
        if hasattr(os, "fork"):
            self._fork()
        else:
            threading.Thread(target=self._loop, name="workersize-monitor", daemon=True).start()

    def keep(self) -> None:
        """Start the monitor again if it has died; cheap enough to be called often."""
        is_forked = self.pid is not None or self._is_missing
        if os.getpid() != self._master or not is_forked or self._is_alive():
            return
        is_young = time.monotonic() < self._started_at + _AGAIN_SECONDS
        if is_young and self._died_early:
            return
        self._died_early = is_young
        self._forget()
        say(logging.WARNING, "the monitor has died; it is started again.")
        try:
            self.start()
        except OSError as error:
            # No process or descriptor to be had: the server goes on, and this is tried again.
            self._is_missing = True
            say(logging.WARNING, f"the monitor cannot be started ({error.strerror}) for now.")

    def stop(self) -> None:
        """End the monitor with the server; in a process that is not its master, do nothing."""
        if os.getpid() != self._master:
            return
        self._board.state = State.STOPPED
        if self.pid is None or self._life is None:
            return
        deadline = time.monotonic() + 1
        while self._is_alive():
            # It cannot be another process: nobody but us could have reaped it.
            os.kill(self.pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            _is_closed(self._life, 0.1)
        self._forget()

    def _is_alive(self) -> bool:
        """Return whether the monitor lives: the other end of a pipe closes with it."""
        return self._life is not None and not _is_closed(self._life, 0)

    def _forget(self) -> None:
        if self._life is not None:
            os.close(self._life)
        if self.pid is not None:
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        self._life = self.pid = None

    def _fork(self) -> None:
        life, end = os.pipe()
        # Until the monitor has handlers of its own, a signal must not reach those of the master.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if not pid:
                os.close(life)
                self._live(before)
        except OSError:
            os.close(life)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(end)
        self.pid, self._life, self._is_missing = pid, life, False

    def _live(self, mask: Iterable[int]) -> None:
        """Be the monitor. A status of 3 or 4 would stop gunicorn 26, which takes it for a worker's.

        Nothing of the launcher's frames, exit handlers or buffers is this process' to end.
        """
        status = 1
        try:
            gc.freeze()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, lambda signum, frame: None)
            for name in _IGNORED:
                signal.signal(getattr(signal, name), signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            give_up_streams(self._kept)
            _hurry()
            self._settle()
            self._loop()
            status = 0
        except BaseException:
            with suppress(Exception):
                logger.exception("The monitor failed.")
        finally:
            os._exit(status)

    def _loop(self) -> None:
        loop = self._make_watch()
        probe = self._open_probe(loop)
        while self._has_master() and self._board.state != State.STOPPED:
            loop.run()
            time.sleep(loop.interval)
        probe.close()
        try:
            loop.end()
        finally:
            if self._board.state != State.STOPPED:
                self._end_orphans()

    def _has_master(self) -> bool:
        return self._master in (os.getppid(), os.getpid())

    def _end_orphans(self) -> None:
        """End workers that have lost their master: they would hold the port against the next."""
        rows = [row for row in self._board.read().workers if row.pid]
        peers = [ProcessHandle(row.pid, row.start_time) for row in rows if row.pid != self._master]
        if peers:
            say(
                logging.WARNING,
                f"the master was killed: its workers ({len(peers)}) are ended, so that their port "
                "is free again.",
            )
        end_all(peers, ORPHAN_SECONDS)


def _is_closed(pipe: int, seconds: float) -> bool:
    """Return whether the other end of a pipe is closed; select() takes no number above 1023."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _hurry() -> None:
    """Go before computing workers, where we may (root, outside most containers)."""
    with suppress(OSError):
        os.nice(_NICE)
