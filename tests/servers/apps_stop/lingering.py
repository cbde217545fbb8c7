"""An app that does not want to end: LINGERING names what goes on when the server stops.

As a script it serves by gunicorn, goes on for longer than the graceful timeout, leaves a thread of
its own, and ends with 7, although an exit handler hangs.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from slow import create_app as create_slow  # type: ignore[import-not-found]

from flask_workersize import serve, worker_forked

SECONDS = 60
_pools: list[ThreadPoolExecutor] = []


def note(what: str) -> None:
    """Write a line to events.txt."""
    with Path("events.txt").open("a") as file:
        file.write(f"{what} {os.getpid()}\n")


def run_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(SECONDS,), name="night\x1bly").start()


def run_again_and_again() -> None:
    """Be a job that starts its next run itself, as timers do."""
    timer = threading.Timer(0.2, run_again_and_again)
    timer.name = "nightly"
    timer.start()


def run_in_a_pool() -> None:
    _pools.append(ThreadPoolExecutor(1, thread_name_prefix="nightly"))
    _pools[-1].submit(time.sleep, SECONDS)


def hang_at_exit() -> None:
    atexit.register(time.sleep, SECONDS)


def have_no_threads() -> None:
    """Be where the system allows no thread more."""

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threading.Thread.start = fail  # type: ignore[assignment, method-assign]


def note_threads() -> None:
    """Write to forks.txt which threads a process had that forks."""
    names = ",".join(sorted(thread.name for thread in threading.enumerate()))
    with Path("forks.txt").open("a") as file:
        file.write(f"{names}\n")


def end_by_itself() -> None:
    """Have what ends as soon as the process does: an idle pool, a thread that waits for it."""

    def last() -> None:
        threading.main_thread().join()
        note("last")

    _pools.append(ThreadPoolExecutor(1))
    _pools[-1].submit(os.getpid).result()
    threading.Thread(target=last).start()


KINDS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "thread": run_a_thread,
    "timer": run_again_and_again,
    "pool": run_in_a_pool,
    "ending": end_by_itself,
    "threadless": have_no_threads,
}


def linger(sender: Any = None) -> None:
    """Begin what goes on, in this process."""
    KINDS[os.environ["LINGERING"]]()


app = create_slow()
atexit.register(note, "exit")
os.register_at_fork(before=note_threads)
linger()
worker_forked.connect(linger, sender=app)

if __name__ == "__main__":
    serve(app, "gunicorn")
    note("returned")
    time.sleep(1.1)
    note("done")
    threading.Timer(1.2, note, ["later"]).start()
    hang_at_exit()
    sys.exit(7)
