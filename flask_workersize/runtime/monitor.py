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
import stat
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from ..log import logger, say
from ..resources.processes import process_memory
from .peers import Peer, end_all
from .scoreboard import Scoreboard, Snapshot, State

TURN_SECONDS = 0.25
"""How long the monitor waits for requests before it looks around: how soon it sees the end of the
master, and a saturation."""

SAMPLE_SECONDS = 1.0
"""How often the memory of one worker is read, in turn: one costs up to some milliseconds, so that
this stays below 1 % of a CPU."""

ORPHAN_SECONDS = 2.0
"""How long workers whose master was killed may finish what they do: then their port is needed."""

_AGAIN_SECONDS = 5.0
"""How long a monitor that ended right after its start is left alone."""

_IGNORED = ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU", "SIGWINCH", "SIGQUIT")
"""Signals that reach a whole process group, and that are meant for the master."""


class Probe(Protocol):
    """What answers requests while the monitor waits."""

    def turn(self, seconds: float) -> None:
        """Answer requests for about as long."""

    def close(self) -> None:
        """Stop answering."""


class NoProbe:
    """Answers nothing: there is no port for it."""

    def turn(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def close(self) -> None:
        """Do nothing."""


class Watch:
    """What the monitor has seen over time.

    :param board: the shared table
    """

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._saturated_since: float | None = None
        self._next_look = self._next_sample = 0.0

    def look(self) -> None:
        """Look at the table and at the memory of one worker, each if it is time."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + TURN_SECONDS
        snapshot = self._board.read()
        if not snapshot.is_saturated:
            self._saturated_since = None
        elif self._saturated_since is None:
            self._saturated_since = now
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE_SECONDS
            self._sample(snapshot)

    def saturated_seconds(self) -> float:
        """Return for how long every slot has been busy."""
        since = self._saturated_since
        return 0.0 if since is None else time.monotonic() - since

    def _sample(self, snapshot: Snapshot) -> None:
        rows = [row for row in snapshot.rows if row.pid]
        if not rows:
            return
        row = max(rows, key=lambda row: row.memory.age_seconds if row.memory else float("inf"))
        memory = process_memory(row.pid)
        if memory is not None:
            self._board.note_memory(
                row.number, memory.rss_bytes, memory.pss_bytes, memory.uss_bytes
            )


class Monitor:
    """The monitor, as its master has it in hand.

    :param board: the shared table
    :param open_probe: returns what answers requests; called in the monitor
    :param settle: gives up, in the monitor's process, what is not for it, such as privileges
    :param kept: the sockets that the monitor needs; all others are the app's
    """

    def __init__(
        self,
        board: Scoreboard,
        open_probe: Callable[[Watch], Probe],
        settle: Callable[[], None] = lambda: None,
        kept: Iterable[socket.socket] = (),
    ) -> None:
        self._board = board
        self._open_probe = open_probe
        self._settle = settle
        self._kept = [item.fileno() for item in kept]
        self._master = os.getpid()
        self._life: int | None = None
        self._started_at = float("-inf")
        self._died_early = False
        self.pid: int | None = None

    def start(self) -> None:
        """Start the monitor."""
        self._started_at = time.monotonic()
        if hasattr(os, "fork"):
            self._fork()
        else:
            threading.Thread(target=self._watch, name="workersize-monitor", daemon=True).start()

    def keep(self) -> None:
        """Start the monitor again if it has died; cheap enough to be called often."""
        if os.getpid() != self._master or self.pid is None or self._is_alive():
            return
        is_young = time.monotonic() < self._started_at + _AGAIN_SECONDS
        if is_young and self._died_early:
            return
        self._died_early = is_young
        self._forget()
        say(logging.WARNING, "the monitor has died; it is started again.")
        self.start()

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
            select.select([self._life], [], [], 0.1)
        self._forget()

    def _is_alive(self) -> bool:
        """Return whether the monitor lives: the other end of a pipe closes with it."""
        return self._life is not None and not select.select([self._life], [], [], 0)[0]

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
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(end)
        self.pid, self._life = pid, life

    def _live(self, mask: Iterable[int]) -> None:
        """Be the monitor. A status of 3 or 4 would stop gunicorn 26, which takes it for a worker's.

        Nothing of the launcher's frames, exit handlers or buffers is this process' to end.
        """
        status = 1
        try:
            # What was there before is never looked at by the collector: its pages stay shared.
            gc.freeze()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, lambda signum, frame: None)
            for name in _IGNORED:
                signal.signal(getattr(signal, name), signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _give_up_streams(self._kept)
            self._settle()
            self._watch()
            status = 0
        except BaseException:
            with suppress(Exception):
                logger.exception("The monitor failed.")
        finally:
            os._exit(status)

    def _watch(self) -> None:
        watch = Watch(self._board)
        probe = self._open_probe(watch)
        while self._has_master() and self._board.state != State.STOPPED:
            watch.look()
            probe.turn(TURN_SECONDS)
        probe.close()
        if self._board.state != State.STOPPED:
            self._end_orphans()

    def _has_master(self) -> bool:
        return self._master in (os.getppid(), os.getpid())

    def _end_orphans(self) -> None:
        """End workers that have lost their master: they would hold the port against the next."""
        rows = [row for row in self._board.read().rows if row.pid]
        peers = [Peer(row.pid, row.start_time) for row in rows if row.pid != self._master]
        if peers:
            say(
                logging.WARNING,
                f"the master was killed: its workers ({len(peers)}) are ended, so that their port "
                "is free again.",
            )
        end_all(peers, ORPHAN_SECONDS)


def _give_up_streams(kept: Iterable[int]) -> None:
    """Give up listeners and connections that were inherited: they would not close with the app.

    Each is replaced, not closed, so that whoever knows its number writes to nothing.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2 and descriptor not in kept and _is_stream(descriptor):
            os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _is_stream(descriptor: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        found = socket.socket(fileno=descriptor)
    except OSError:
        return False
    try:
        return found.type == socket.SOCK_STREAM
    finally:
        found.detach()
