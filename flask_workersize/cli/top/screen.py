"""A terminal that is redrawn in place, and is left as it was found."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""Alternate screen, no cursor, and no wrapping of what is too wide."""

_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

_ENDING = ("SIGTERM", "SIGHUP")
_SLICE_SECONDS = 0.1


def is_live(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can be redrawn."""
    return stream.isatty() and (sys.platform == "win32" or _kind() not in ("", "dumb"))


def has_colour(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with colours and NO_COLOR is unset (no-color.org)."""
    return is_live(stream) and not os.environ.get("NO_COLOR")


def _kind() -> str:
    return os.environ.get("TERM", "")


class Screen:
    """A terminal while it is redrawn; :func:`live_screen` makes one."""

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._is_new = False

    @property
    def size(self) -> os.terminal_size:
        """Its columns and rows now."""
        return os.get_terminal_size(self._descriptor)

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines in place of what was there, in one piece; what is below its end is left out.

        :raises OSError: if the terminal is gone
        """
        shown = [f"{line}{_REST_OF_LINE}" for line in lines[: max(self.size.lines, 1)]]
        self.write(_HOME + "\r\n".join(shown) + _REST_OF_SCREEN)

    def wait(self, seconds: float) -> bool:
        """Wait, and return whether the time is over; if not, there is a new size to draw for."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._is_new:
                self._is_new = False
                return False
            # A signal handler may not set what somebody waits for with a lock.
            time.sleep(min(left, _SLICE_SECONDS))
        return True

    def write(self, text: str) -> None:
        """Write a text as it is."""
        data = text.encode(self._encoding, "replace")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def note_size(self, signum: int, frame: Any) -> None:
        """Note that there is a new size; a signal handler."""
        self._is_new = True

    def pause(self, signum: int, frame: Any) -> None:
        """Give the terminal back while the process is stopped, as by Ctrl-Z; a signal handler."""
        self.write(_LEAVE)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        signal.signal(signum, self.pause)
        self.write(_ENTER)
        self._is_new = True


@contextmanager
def live_screen(stream: TextIO) -> Iterator[Screen]:
    """Take a terminal, and give it back whatever ends the block, signals included.

    :raises SystemExit: on SIGTERM and SIGHUP, with 128 and the signal's number
    """
    if sys.platform == "win32":
        # It makes the console understand escapes.
        os.system("")
    screen = Screen(stream)
    handlers: dict[str, Callable[[int, Any], None]] = dict.fromkeys(_ENDING, _end)
    handlers |= {"SIGTSTP": screen.pause, "SIGWINCH": screen.note_size}
    known = {getattr(signal, name): name for name in handlers if hasattr(signal, name)}
    before = {number: signal.signal(number, handlers[name]) for number, name in known.items()}
    before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    try:
        screen.write(_ENTER)
        yield screen
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        with suppress(OSError):
            screen.write(_LEAVE)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)
