"""The WSGI middleware that keeps a worker's row: what runs, how much was served, how long it took.

It stands outermost, where it sees all that holds a thread. One store at the start of a request and
four at its end, into a slot that only this thread writes. The CPU time of a thread costs a system
call, so it is read once a request: what the server does between two requests counts, too.

It is also where a request ends, whatever it raises: servers let ``KeyboardInterrupt`` and its like
pass, which would end the worker, or the whole server.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic_ns, thread_time_ns
from typing import Any, Protocol
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from .admission import Verdict
from .layer import Layer
from .layout import Slot
from .queue_times import note_abandoned, note_shed, note_wait
from .worker_record import WorkerRecord

SLOT_KEY = "flask_workersize.slot"
"""Where a request finds the slot that it runs in."""

_SERVED, _BUSY, _CPU = Slot.SERVED, Slot.BUSY, Slot.CPU


class Contained(RuntimeError):
    """Stands for an exception that is no :class:`Exception`; servers answer this one with 500."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__} in the app")


def contained(
    call: Callable[..., Any], passing: tuple[type[BaseException], ...] = (Exception,)
) -> Callable[..., Any]:
    """Return a call that raises :class:`Contained` in place of what does not pass."""

    def contain(*args: Any) -> Any:
        try:
            return call(*args)
        except passing:
            raise
        except BaseException as error:
            raise Contained(error) from error

    return contain


class Gate(Protocol):
    """Tells how long a request has waited, and what is to be done with it."""

    patience: float
    """Seconds that a request may have waited before :meth:`judge` is asked."""

    waited: Callable[[WSGIEnvironment], float | None]
    """Returns how many seconds a request has waited; ``None`` if not known."""

    def judge(self, waited: float, environ: WSGIEnvironment) -> Verdict:
        """Return what is to be done with a request that has waited."""

    def announce_close(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        """Make the response announce that its connection is closed, and close it then."""


class Meter(Layer):
    """Counts each request in the slot of its thread, until its response is closed.

    A request for which ``gate`` says so does not reach the app: its answer is status 503.
    """

    __slots__ = ("_cells", "_free", "_gate", "_hands_files_over", "_mine", "_queue")

    def __init__(
        self,
        app: WSGIApplication,
        row: WorkerRecord,
        hands_files_over: bool = False,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(app)
        self._cells = row.cells
        self._queue = row.queue.cells
        self._free = zip(row.slots, row.queue.starts, strict=True)
        self._mine = threading.local()
        self._hands_files_over = hands_files_over
        self._gate = gate

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        try:
            slot, queue = self._mine.slot
        except AttributeError:
            slot, queue = self._take_slot()
        begun = monotonic_ns()
        if self._gate is not None:
            waited = self._gate.waited(environ)
            if waited is not None:
                if slot is not None:
                    note_wait(self._queue, queue, waited, begun)
                if waited > self._gate.patience:
                    verdict = self._gate.judge(waited, environ)
                    if verdict is not Verdict.SERVE:
                        self._count_refused(verdict, slot, queue)
                        return _refuse(self._gate, environ, start_response)
        if slot is None:
            end = _end_uncounted
        else:
            self._cells[slot] = begun
            environ[SLOT_KEY] = slot
            end = partial(_end, self._cells, slot, begun)
        try:
            body: Any = self.app(environ, start_response)
        except Exception:
            end()
            raise
        except BaseException as error:
            end()
            raise Contained(error) from error
        metered = _SizedBody(body, end) if hasattr(body, "__len__") else _Body(body, end)
        if isinstance(body, environ.get("wsgi.file_wrapper", ())):
            return self._file(body, metered)
        return metered

    def _file(self, body: Any, metered: _Body) -> Iterable[bytes]:
        """Return a server's own wrapper of a file: it knows it by its class, and uses sendfile."""
        for name in _FILE_NAMES:
            if hasattr(body, name):
                setattr(body, name, _File(getattr(body, name)))
        if self._hands_files_over:
            metered.end()
        else:
            body.close = metered.close
        return body  # type: ignore[no-any-return]

    def _take_slot(self) -> tuple[int | None, int]:
        # A thread more than there are slots is not counted; neither server starts one.
        slot, queue = self._mine.slot = next(self._free, (None, -1))
        if slot is not None:
            # What it has computed so far, such as to load the app, was for no request.
            self._cells[slot + Slot.CPU_BEFORE] = self._cells[slot + _CPU] = thread_time_ns()
        return slot, queue

    def _count_refused(self, verdict: Verdict, slot: int | None, queue: int) -> None:
        if slot is None:
            return
        (note_shed if verdict is Verdict.SHED else note_abandoned)(self._queue, queue)
        # What this has cost is no part of what the app's requests cost.
        cells, now = self._cells, thread_time_ns()
        cells[slot + Slot.CPU_BEFORE] += now - cells[slot + _CPU]
        cells[slot + _CPU] = now


_BUSY_TEXT = b"The server is busy. Try again in a moment.\n"
_MOST_RETRY_SECONDS = 3


def _refuse(gate: Gate, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    gate.announce_close(environ, start_response)
    # At random, or all who were turned away would come back at once.
    retry_after = random.randint(1, _MOST_RETRY_SECONDS)
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(_BUSY_TEXT))),
        ("Retry-After", str(retry_after)),
        ("Cache-Control", "no-store"),
    ]
    start_response("503 Service Unavailable", headers)
    return () if environ["REQUEST_METHOD"] == "HEAD" else (_BUSY_TEXT,)


_FILE_NAMES = ("filelike", "file")
"""Where the wrappers of gunicorn and of waitress keep the app's file."""


class _File:
    """A file of the app, whose methods raise nothing that would end the server."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        return contained(found) if callable(found) else found


class _Body:
    """A response that ends its request when it is closed."""

    __slots__ = ("_body", "_close", "end")

    def __init__(self, body: Iterable[bytes], end: Callable[[], None]) -> None:
        self._body = body
        self._close = getattr(body, "close", None)
        self.end = end

    def __iter__(self) -> Iterator[bytes]:
        try:
            step = iter(self._body).__next__
        except Exception:
            raise
        except BaseException as error:
            raise Contained(error) from error
        while True:
            try:
                part = step()
            except StopIteration:
                return
            except Exception:
                raise
            except BaseException as error:
                raise Contained(error) from error
            yield part

    def close(self) -> None:
        try:
            if self._close is not None:
                self._close()
        except Exception:
            raise
        except BaseException as error:
            raise Contained(error) from error
        finally:
            self.end()


class _SizedBody(_Body):
    """A response whose number of parts is known, from which servers tell its length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]


def _end_uncounted() -> None:
    pass


def _end(cells: memoryview[int], slot: int, begun: int) -> None:
    if cells[slot] != begun:
        # Closed twice, or late: the slot is another request's by now.
        return
    cells[slot + _BUSY] += monotonic_ns() - begun
    cells[slot + _SERVED] += 1
    cells[slot + _CPU] = thread_time_ns()
    cells[slot] = 0
