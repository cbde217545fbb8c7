"""Threads of our own: they hold no end, take no signal, and a server goes on without them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def start_thread(name: str, work: Callable[..., object], *args: object) -> threading.Thread | None:
    """Start a daemon; return ``None`` if the system allows no more threads."""
    thread = threading.Thread(target=work, args=args, name=f"workersize-{name}", daemon=True)
    with _signals_blocked(), suppress(RuntimeError):
        thread.start()
        return thread
    return None


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block all signals, which a new thread inherits.

    An app may block some later on, and wait for them: in a thread that takes them they would act.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
