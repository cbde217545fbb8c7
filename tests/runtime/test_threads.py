"""Threads of our own."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from flask_workersize.runtime.threads import start_thread


def test_no_thread_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert start_thread("test", print) is None


@pytest.mark.skipif(sys.platform == "win32", reason="blocks no signals")
def test_thread_takes_no_signal_and_its_starter_takes_what_it_took() -> None:
    masks: list[set[signal.Signals | int]] = []

    def note() -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    note()
    thread = start_thread("test", note)
    assert thread is not None
    thread.join()
    note()
    before, inside, after = masks
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2} <= inside
    assert before == after
