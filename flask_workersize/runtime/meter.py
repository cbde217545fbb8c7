"""The WSGI middleware that keeps a worker's row: what runs, how much was served, how long it took.

It is the outermost layer, where it sees everything that holds a thread. It costs one store at the
start of a request and four at its end, into a slot that only this thread writes. The CPU time of a
thread costs a system call, so it is read once a request: the server's work between two requests
counts, too.

It is also where a request ends, whatever it raises: servers let ``KeyboardInterrupt`` and its like
pass, which would end the worker, or the whole server.
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from time import monotonic_ns, thread_time_ns
from typing import Any, Protocol
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from ..resources.processes import open_schedstat, waited_for_cpu
from .admission import Verdict
from .layer import Layer
from .layout import Slot
from .queue_times import note_abandoned, note_shed, note_wait
from .worker_record import WorkerRecord

SLOT_KEY = "flask_workersize.slot"
"""Where a request finds the slot that it runs in."""

_SERVED, _BUSY, _CPU, _CPU_WAIT = Slot.SERVED, Slot.BUSY, Slot.CPU, Slot.CPU_WAIT
_ALONE, _ALONE_CPU, _ALONE_WAIT = Slot.ALONE, Slot.ALONE_CPU, Slot.ALONE_WAIT


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
    """Decides what to do with a request, by how long it has waited."""

    patience: float
    """Seconds that a request may have waited before :meth:`judge` is called."""

    waited: Callable[[WSGIEnvironment], float | None]
    """Returns how many seconds a request has waited; ``None`` if not known."""

    def judge(self, waited: float, environ: WSGIEnvironment) -> Verdict:
        """Return what to do with a request that has waited."""

    def announce_close(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        """Make the response announce that its connection is closed, and close it then."""


_LONG_NANOSECONDS = 1_000_000
"""A request of a millisecond: a shorter one's wait for a CPU is counted with the next longer one,
since reading it takes a microsecond."""


class _Lease:
    """What one thread has until it ends, and its local variables with it.

    Its words begin at ``slot`` in the scoreboard, and at ``queue`` in the table of queue times.
    """

    def __init__(self, free: deque[tuple[int, int]]) -> None:
        self._free = free
        self.slot, self.queue = free.popleft()
        self._schedstat = open_schedstat()
        self._waited = 0
        self.cpu_wait()

    def cpu_wait(self) -> int:
        """Return for how many nanoseconds this thread has waited for a CPU since the last call."""
        if self._schedstat is None:
            return 0
        before, self._waited = self._waited, waited_for_cpu(self._schedstat)
        return self._waited - before

    def __del__(self) -> None:
        if self._schedstat is not None:
            os.close(self._schedstat)
        self._free.append((self.slot, self.queue))


class _Turns:
    """Detects whether a request ran alone in its process, without a lock.

    Two threads that count at the same moment may make the next answer wrong, but no later one.
    """

    def __init__(self) -> None:
        self._begins, self._ends = count(), count(1)
        self._begun = self._ended = 0

    def begin(self) -> int:
        """Count a request that begins; return its number, or -1 if it is not alone."""
        number = self._begun = next(self._begins)
        return number if self._ended == number else -1

    def was_alone(self, number: int) -> bool:
        """Return whether no other has begun since."""
        return self._begun == number

    def end(self) -> None:
        """Count one that ends."""
        self._ended = next(self._ends)


class Meter(Layer):
    """Counts each request in the slot of its thread, until its response is closed.

    A request that ``gate`` turns away does not reach the app: its answer is status 503.
    """

    __slots__ = ("_cells", "_free", "_gate", "_hands_files_over", "_mine", "_queue", "_turns")

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
        self._turns = _Turns()
        self._free: deque[tuple[int, int]] = deque(zip(row.slots, row.queue.starts, strict=True))
        self._mine = threading.local()
        self._hands_files_over = hands_files_over
        self._gate = gate

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        try:
            lease = self._mine.lease
        except AttributeError:
            lease = self._mine.lease = self._take_slot()
        begun = monotonic_ns()
        if self._gate is not None:
            waited = self._gate.waited(environ)
            if waited is not None:
                if lease is not None:
                    note_wait(self._queue, lease.queue, waited, begun)
                if waited > self._gate.patience:
                    verdict = self._gate.judge(waited, environ)
                    if verdict is not Verdict.SERVE:
                        self._count_refused(verdict, lease)
                        return _refuse(self._gate, environ, start_response)
        if lease is None:
            end = _end_uncounted
        else:
            if self._cells[lease.slot]:
                # The response was not closed before.
                self._turns.end()
            self._cells[lease.slot] = begun
            environ[SLOT_KEY] = lease.slot
            end = partial(self._end, lease, begun, self._turns.begin())
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

    def _take_slot(self) -> _Lease | None:
        # A thread more than there are slots is not counted; neither server starts one.
        if not self._free:
            return None
        lease = _Lease(self._free)
        cells, slot, now = self._cells, lease.slot, thread_time_ns()
        # What it has computed so far, such as to load the app, was for no request; what another
        # thread has computed here before was.
        cells[slot + Slot.CPU_BEFORE] += now - cells[slot + _CPU]
        cells[slot + _CPU] = now
        return lease

    def _end(self, lease: _Lease, begun: int, turn: int) -> None:
        cells, slot = self._cells, lease.slot
        if cells[slot] != begun:
            # Closed twice, or late: the slot is another request's by now.
            return
        busy, cpu = monotonic_ns() - begun, thread_time_ns()
        cells[slot + _BUSY] += busy
        cells[slot + _SERVED] += 1
        delay = lease.cpu_wait() if busy > _LONG_NANOSECONDS else 0
        cells[slot + _CPU_WAIT] += delay
        if self._turns.was_alone(turn):
            own = cpu - cells[slot + _CPU]
            cells[slot + _ALONE] += 1
            cells[slot + _ALONE_CPU] += own
            cells[slot + _ALONE_WAIT] += max(busy - own - delay, 0)
        cells[slot + _CPU] = cpu
        cells[slot] = 0
        self._turns.end()

    def _count_refused(self, verdict: Verdict, lease: _Lease | None) -> None:
        if lease is None:
            return
        (note_shed if verdict is Verdict.SHED else note_abandoned)(self._queue, lease.queue)
        # This cost is not part of the app's requests.
        cells, slot, now = self._cells, lease.slot, thread_time_ns()
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
    """A response with a known number of parts, from which servers derive its length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]


def _end_uncounted() -> None:
    pass
