"""The middleware that keeps a worker's row: what counts as running, and when it has been served."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from gunicorn.http.wsgi import FileWrapper
from waitress.buffers import ReadOnlyFileBasedBuffer

from flask_workersize.runtime.meter import SLOT_KEY, Meter
from flask_workersize.runtime.scoreboard import Scoreboard
from flask_workersize.runtime.snapshot import WorkerStats
from flask_workersize.runtime.worker_record import WorkerRecord

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TEXT = [("Content-Type", "text/plain")]


class Served:
    """An app under the meter, and the row that it keeps.

    :param app: the app
    :param threads: how many slots there are
    """

    def __init__(
        self, app: WSGIApplication, threads: int = 1, hands_files_over: bool = False
    ) -> None:
        self._board = Scoreboard(1, threads)
        row = self._board.allocate(1)
        assert row is not None
        self.row: WorkerRecord = row
        self.meter = Meter(app, row, hands_files_over)
        self.started: list[str] = []

    def ask(self, **environ: Any) -> Any:
        """Ask, as a server does, and return the response as a server gets it."""
        setup_testing_defaults(environ)
        return self.meter(environ, self._start)

    def _start(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        self.started.append(status)
        return lambda data: None

    @property
    def now(self) -> WorkerStats:
        (row,) = self._board.read().workers
        return row

    @property
    def counts(self) -> tuple[int, int]:
        """Requests that run, and that were served."""
        return self.now.busy, self.now.served


def answering(body: Iterable[bytes]) -> WSGIApplication:
    """Return an app with this response."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return body

    return app


class Body:
    """A response that says how often it was closed, and that may fail.

    :param fails_at: "iteration", "close", or nothing
    """

    def __init__(self, fails_at: str = "") -> None:
        self.closed = 0
        self._fails_at = fails_at

    def __iter__(self) -> Iterator[bytes]:
        yield b"one"
        if self._fails_at == "iteration":
            raise LookupError("in the middle")
        yield b"two"

    def close(self) -> None:
        self.closed += 1
        if self._fails_at == "close":
            raise LookupError("at the end")


# From the start of a request to the end of its response


def test_request_runs_while_the_app_works_on_it() -> None:
    seen: list[tuple[int, int]] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(served.counts)
        start_response("200 OK", TEXT)
        return [b"done"]

    served = Served(app)
    served.ask().close()
    assert seen == [(1, 0)]
    assert served.counts == (0, 1)
    assert served.started == ["200 OK"]


def test_response_in_a_list_ends_when_it_is_closed() -> None:
    served = Served(answering([b"one", b"two"]))
    response = served.ask()
    assert list(response) == [b"one", b"two"]
    assert served.counts == (1, 0)
    response.close()
    assert served.counts == (0, 1)


def test_response_that_streams_runs_until_it_is_closed() -> None:
    def parts() -> Iterator[bytes]:
        yield b"one"
        yield b"two"

    served = Served(answering(parts()))
    response = served.ask()
    stream = iter(response)
    for part in (b"one", b"two"):
        assert next(stream) == part
        assert served.counts == (1, 0)
    with pytest.raises(StopIteration):
        next(stream)
    assert served.counts == (1, 0)
    response.close()
    assert served.counts == (0, 1)


def test_generator_is_closed_with_its_response() -> None:
    """As where the client goes away in the middle: what the app has to clean up is cleaned up."""
    cleaned: list[str] = []

    def parts() -> Iterator[bytes]:
        try:
            yield b"one"
        finally:
            cleaned.append("up")

    served = Served(answering(parts()))
    response = served.ask()
    next(iter(response))
    response.close()
    assert cleaned == ["up"]
    assert served.counts == (0, 1)


def test_response_with_a_close_of_its_own_is_closed_once() -> None:
    body = Body()
    served = Served(answering(body))
    response = served.ask()
    assert b"".join(response) == b"onetwo"
    response.close()
    assert body.closed == 1
    assert served.counts == (0, 1)


def test_response_that_is_closed_twice_is_served_once() -> None:
    served = Served(answering([b"one"]))
    response = served.ask()
    response.close()
    response.close()
    assert served.counts == (0, 1)


def test_response_that_is_closed_late_does_not_end_the_next_request() -> None:
    served = Served(answering([b"one"]))
    first = served.ask()
    second = served.ask()
    first.close()
    assert served.counts == (1, 0)
    second.close()
    assert served.counts == (0, 1)


def test_close_that_fails_ends_the_request_all_the_same() -> None:
    served = Served(answering(Body("close")))
    with pytest.raises(LookupError, match="at the end"):
        served.ask().close()
    assert served.counts == (0, 1)


@pytest.mark.parametrize(
    ("error", "seen"),
    [(LookupError, "of the app"), (SystemExit, "SystemExit in"), (KeyboardInterrupt, "Keyb")],
)
def test_app_that_raises_has_served(error: type[BaseException], seen: str) -> None:
    """What is no ``Exception`` becomes one: servers let it pass, and would end with it."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise error("of the app")

    served = Served(app)
    with pytest.raises(Exception, match=seen):
        served.ask()
    assert served.counts == (0, 1)


def test_iteration_that_raises_is_served_when_the_server_closes_it() -> None:
    body = Body("iteration")
    served = Served(answering(body))
    response = served.ask()
    stream = iter(response)
    assert next(stream) == b"one"
    with pytest.raises(LookupError, match="in the middle"):
        next(stream)
    assert served.counts == (1, 0)
    response.close()
    assert (body.closed, served.counts) == (1, (0, 1))


def test_time_of_a_request_is_added_when_it_ends() -> None:
    served = Served(answering([b"one"]))
    response = served.ask()
    assert served.now.busy_ns / 1e9 == 0
    assert len(served.now.running_seconds) == 1
    response.close()
    first = served.now.busy_ns / 1e9
    assert first > 0
    served.ask().close()
    assert served.now.busy_ns / 1e9 > first


def test_requests_are_counted_one_by_one() -> None:
    served = Served(answering([b"one"]))
    for number in range(1, 21):
        served.ask().close()
        assert served.counts == (0, number)


# What the server may see of a response


@pytest.mark.parametrize("body", [[], [b"one"], [b"one", b"two"], (b"one",)])
def test_response_of_known_length_keeps_it(body: list[bytes]) -> None:
    """Servers send a ``Content-Length`` where there is one part."""
    response = Served(answering(body)).ask()
    assert len(response) == len(body)
    response.close()


@pytest.mark.parametrize("body", [iter([b"one"]), (part for part in [b"one"]), Body()])
def test_response_of_unknown_length_has_none(body: Iterable[bytes]) -> None:
    response = Served(answering(body)).ask()
    assert not hasattr(response, "__len__")
    response.close()


def test_what_an_app_writes_reaches_the_server() -> None:
    """The old way, by what ``start_response`` returns, which is the server's own."""
    writers: list[object] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        writers.append(start_response("200 OK", TEXT))
        return []

    served = Served(app)
    served.ask().close()
    assert callable(writers[0])


@pytest.mark.parametrize(
    "parts", [[b"one"], [b"one", b"two"], []], ids=lambda parts: f"{len(parts)} parts"
)
@pytest.mark.parametrize("kind", [list, iter])
def test_meter_keeps_to_wsgi_towards_the_server_and_towards_the_app(
    kind: Callable[[list[bytes]], Iterable[bytes]], parts: list[bytes]
) -> None:
    """``wsgiref.validate`` stands on both sides, and raises where one does not."""
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(b"".join(parts))))]

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["wsgi.input"].read(0)
        start_response("200 OK", headers)
        return kind(parts)

    served = Served(validator(app))
    environ: dict[str, Any] = {"QUERY_STRING": ""}
    setup_testing_defaults(environ)
    response: Any = validator(served.meter)(environ, served._start)
    assert list(response) == parts
    assert served.counts == (1, 0)
    response.close()
    assert served.counts == (0, 1)


# Files, which servers send by themselves


class Readable:
    """An empty file that nobody has to close."""

    def read(self, size: int = -1) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0


@pytest.mark.parametrize("wrapper", [FileWrapper, ReadOnlyFileBasedBuffer])
@pytest.mark.parametrize("hands_files_over", [False, True])
def test_file_is_the_same_object_for_the_server(wrapper: Any, hands_files_over: bool) -> None:
    """It knows it by its class, and only then sends it with ``sendfile`` or from its buffers."""
    file = wrapper(io.BytesIO(b"content"))
    served = Served(answering(file), hands_files_over=hands_files_over)
    response = served.ask(**{"wsgi.file_wrapper": wrapper})
    assert response is file
    assert type(response) is wrapper
    response.close()
    assert served.counts == (0, 1)


def test_file_of_gunicorn_runs_until_it_is_closed() -> None:
    """Its thread sends it."""
    content = io.BytesIO(b"content")
    served = Served(answering(FileWrapper(content)))
    response = served.ask(**{"wsgi.file_wrapper": FileWrapper})
    assert b"".join(response) == b"content"
    assert served.counts == (1, 0)
    response.close()
    assert content.closed
    assert served.counts == (0, 1)


def test_file_of_gunicorn_without_a_close_runs_until_it_is_closed_too() -> None:
    served = Served(answering(FileWrapper(Readable())))
    response = served.ask(**{"wsgi.file_wrapper": FileWrapper})
    assert served.counts == (1, 0)
    response.close()
    assert served.counts == (0, 1)


def test_file_that_fails_to_close_ends_its_request() -> None:
    class Failing(Readable):
        def close(self) -> None:
            raise LookupError("of the file")

    served = Served(answering(FileWrapper(Failing())))
    response = served.ask(**{"wsgi.file_wrapper": FileWrapper})
    with pytest.raises(LookupError, match="of the file"):
        response.close()
    assert served.counts == (0, 1)


def test_file_of_waitress_ends_when_it_is_handed_over() -> None:
    """Its thread is free then: the main loop sends the file, and may need long."""
    file: Any = ReadOnlyFileBasedBuffer(io.BytesIO(b"content"))
    served = Served(answering(file), hands_files_over=True)
    response = served.ask(**{"wsgi.file_wrapper": ReadOnlyFileBasedBuffer})
    assert served.counts == (0, 1)
    response.close()
    assert served.counts == (0, 1)


def test_response_that_is_no_file_of_this_server_is_like_any_other() -> None:
    served = Served(answering(FileWrapper(io.BytesIO(b"content"))), hands_files_over=True)
    response = served.ask(**{"wsgi.file_wrapper": ReadOnlyFileBasedBuffer})
    assert b"".join(response) == b"content"
    assert served.counts == (1, 0)
    response.close()
    assert served.counts == (0, 1)


# Threads


class Gate:
    """An app whose requests wait in it until all are let out."""

    def __init__(self, expected: int) -> None:
        self._arrived = threading.Barrier(expected + 1)
        self._out = threading.Event()
        self.slots: list[int | None] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        self.slots.append(environ.get(SLOT_KEY))
        start_response("200 OK", TEXT)
        self._arrived.wait(30)
        self._out.wait(30)
        return [b"done"]

    def await_all(self) -> None:
        self._arrived.wait(30)

    def let_out(self) -> None:
        self._out.set()


def held(served: Served, gate: Gate, count: int) -> list[threading.Thread]:
    """Return threads that each have a request waiting in the gate."""

    def ask() -> None:
        response = served.ask()
        assert list(response) == [b"done"]
        if hasattr(response, "close"):
            response.close()

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    gate.await_all()
    return threads


def test_each_thread_has_a_slot_of_its_own() -> None:
    gate = Gate(2)
    served = Served(gate, threads=2)
    threads = held(served, gate, 2)
    assert served.counts == (2, 0)
    assert sorted(slot for slot in gate.slots if slot is not None) == list(served.row.slots)
    gate.let_out()
    for thread in threads:
        thread.join()
    assert served.counts == (0, 2)


def test_thread_keeps_its_slot() -> None:
    slots: list[int] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        slots.append(environ[SLOT_KEY])
        start_response("200 OK", TEXT)
        return [b"done"]

    served = Served(app, threads=4)
    for _ in range(5):
        served.ask().close()
    assert slots == [served.row.slots[0]] * 5


def test_thread_for_which_there_is_no_slot_is_served_and_not_counted() -> None:
    gate = Gate(3)
    served = Served(gate, threads=2)
    threads = held(served, gate, 3)
    assert served.counts == (2, 0)
    assert gate.slots.count(None) == 1
    gate.let_out()
    for thread in threads:
        thread.join()
    assert served.counts == (0, 2)


def test_request_that_asks_knows_its_slot() -> None:
    """So the report can leave out the request that asks for it."""
    seen: list[int] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        snapshot = served._board.read(but=environ[SLOT_KEY])
        seen.append(snapshot.busy)
        start_response("200 OK", TEXT)
        return [b"done"]

    served = Served(app, threads=2)
    served.ask().close()
    assert seen == [0]


def test_many_threads_lose_no_request() -> None:
    served = Served(answering([b"one"]), threads=4)

    def ask() -> None:
        for _ in range(200):
            served.ask().close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served.counts == (0, 800)


# Requests that ran alone, and threads that come and go


def test_request_that_ran_alone_counts_with_what_it_computed_and_waited() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        time.sleep(0.03)
        return [b"done"]

    served = Served(app)
    for _ in range(3):
        served.ask().close()
    alone = served.now.alone
    assert alone.requests == 3
    assert alone.cpu_ns >= 3 * 9_000_000
    assert alone.wait_ns >= 3 * 25_000_000


def test_requests_that_overlap_are_not_alone() -> None:
    served = Served(answering([b"done"]), threads=2)
    first = served.ask()
    other = threading.Thread(target=lambda: served.ask().close())
    other.start()
    other.join()
    first.close()
    assert served.now.alone.requests == 0
    served.ask().close()
    assert served.now.alone.requests == 1
    assert served.now.served == 3


def test_response_that_nobody_closes_does_not_hide_those_that_run_alone() -> None:
    served = Served(answering([b"done"]))
    served.ask()
    for _ in range(3):
        served.ask().close()
    assert served.now.alone.requests >= 2


def test_thread_that_ends_gives_its_slot_back() -> None:
    served = Served(answering([b"done"]), threads=2)
    for _ in range(5):
        threads = [threading.Thread(target=lambda: served.ask().close()) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert served.counts == (0, 10)
    assert 0 <= served.now.cpu_ns < 10**9


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells it on Linux")
def test_time_that_a_thread_waits_for_a_cpu_is_no_waiting() -> None:
    """As many threads compute as there are CPUs, and some more."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            pass
        return [b"done"]

    served = Served(app)
    burn = "import time\nuntil = time.monotonic() + 5\nwhile time.monotonic() < until: pass"
    count = 2 * len(os.sched_getaffinity(0))
    burners = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(count)]
    try:
        time.sleep(0.3)
        served.ask().close()
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    now = served.now
    assert now.cpu_wait_ns > 0
    assert now.busy_ns - now.cpu_ns - now.cpu_wait_ns < 0.1 * now.busy_ns
