"""Processes that a test forks, to do what only another process can."""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Self

import psutil

from tests.servers.serving import DEADLINE_SECONDS, await_that


class Children:
    """Forks processes, and ends those that are left."""

    def __init__(self) -> None:
        self._pids: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for pid in self._pids:
            kill(pid)

    def __call__(self, work: Callable[[], object]) -> int:
        """Fork a process that does some work and ends, with 1 where that raised; return its id."""
        pid = os.fork()
        if pid:
            self._pids.append(pid)
            return pid
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)


def status_of(pid: int) -> int:
    """Wait for the end of a process that is ours; return its status, or minus the signal."""
    await_end(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def await_end(pid: int) -> None:
    """Wait for the end of a process that is ours, and leave its status to another."""
    look = os.WEXITED | os.WNOWAIT | os.WNOHANG
    await_that(lambda: os.waitid(os.P_PID, pid, look) is not None, f"the end of {pid}")


def kill(pid: int) -> None:
    """Kill a process that is ours, unless it has ended and been waited for."""
    with suppress(ProcessLookupError, ChildProcessError):
        # It cannot be another's: the id is taken until we have waited for it.
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, whoever may still have to wait for it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Pipe:
    """What a process tells another; the end of the one that reads is closed at the end."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.hear_only()
        os.close(self.reader)

    def tell(self, text: str) -> None:
        """Write a line."""
        os.write(self.writer, f"{text}\n".encode())

    def hear_only(self) -> None:
        """Close the end that writes: the one that reads learns when no other process has it."""
        if self.writer >= 0:
            os.close(self.writer)
        self.writer = -1

    def __iter__(self) -> Iterator[str]:
        """Yield each line, until nobody is left to say anything."""
        with suppress(EOFError):
            while True:
                yield self.hear()

    def hear(self) -> str:
        """Wait for a line and return it, without its end.

        :raises EOFError: if nobody is left to say anything
        :raises AssertionError: if nobody says anything for long
        """
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self.reader], [], [], DEADLINE_SECONDS)[0], "not a word"
            letter = os.read(self.reader, 1)
            if not letter:
                raise EOFError
            line += letter
        return line.decode()[:-1]
