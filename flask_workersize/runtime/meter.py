"""The WSGI middleware that keeps a worker's row: what runs, how much was served, how long it took.

It stands outermost, where it sees all that holds a thread. One store at the start of a request and
four at its end, into a slot that only this thread writes. The CPU time of a thread costs a system
call, so it is read once a request: what the server does between two requests counts, too.

It is also where a request ends, whatever it raises: servers let ``KeyboardInterrupt`` and its like
pass, which would end the worker, or the whole server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic_ns, thread_time_ns
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from .layer import Layer
from .layout import Slot
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


class Meter(Layer):
    """Counts each request in the slot of its thread, until its response is closed."""

    __slots__ = ("_cells", "_free", "_hands_files_over", "_mine")

    def __init__(
        self, app: WSGIApplication, row: WorkerRecord, hands_files_over: bool = False
    ) -> None:
        super().__init__(app)
        self._cells = row.cells
        self._free = iter(row.slots)
        self._mine = threading.local()
        self._hands_files_over = hands_files_over

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        try:
            slot: int | None = self._mine.slot
        except AttributeError:
            # A thread more than there are slots is not counted; neither server starts one.
            slot = self._mine.slot = next(self._free, None)
            if slot is not None:
                # What it has computed so far, such as to load the app, was for no request.
                self._cells[slot + Slot.CPU_BEFORE] = self._cells[slot + _CPU] = thread_time_ns()
        if slot is None:
            end = _end_uncounted
        else:
            begun = monotonic_ns()
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
        kind = _SizedBody if hasattr(body, "__len__") else _Body
        metered = kind(body, end)
        if not isinstance(body, environ.get("wsgi.file_wrapper", ())):
            return metered
        # The server knows its own wrapper by its class, and sends it with sendfile.
        for name in _FILE_NAMES:
            if hasattr(body, name):
                setattr(body, name, _File(getattr(body, name)))
        if self._hands_files_over:
            end()
        else:
            body.close = metered.close
        return body  # type: ignore[no-any-return]


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

    __slots__ = ("_body", "_close", "_end", "_next")

    def __init__(self, body: Iterable[bytes], end: Callable[[], None]) -> None:
        self._body = body
        self._close = getattr(body, "close", None)
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        self._next = contained(iter)(self._body).__next__
        return self

    def __next__(self) -> bytes:
        try:
            return self._next()  # type: ignore[no-any-return]
        except Exception:
            raise
        except BaseException as error:
            raise Contained(error) from error

    def close(self) -> None:
        try:
            if self._close is not None:
                self._close()
        except Exception:
            raise
        except BaseException as error:
            raise Contained(error) from error
        finally:
            self._end()


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
