"""An app that raises what no server expects, wherever an app can raise."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any, NoReturn

from flask import Flask, Response, request

from flask_workersize import WorkerSizing


class OwnError(BaseException):
    """What an app may derive from the wrong class."""


KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        KeyboardInterrupt,
        SystemExit,
        GeneratorExit,
        asyncio.CancelledError,
        OwnError,
    )
}


class File:
    """A file that cannot be read."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def read(self, size: int = -1) -> bytes:
        raise self._error


class SeekableFile(File):
    """A file of known length that cannot be read: waitress sends such a file in its main loop."""

    _at = 0

    def seek(self, offset: int, whence: int = 0) -> None:
        self._at = 10 if whence == os.SEEK_END else offset

    def tell(self) -> int:
        return self._at


class Body:
    """A response that raises at its first part, in the middle, or when it is closed."""

    def __init__(self, error: BaseException, place: str) -> None:
        self._error = error
        self._place = place

    def __iter__(self) -> Iterator[bytes]:
        if self._place == "first":
            raise self._error
        yield b"one"
        if self._place == "middle":
            raise self._error
        yield b"two"

    def close(self) -> None:
        if self._place == "close":
            raise self._error


def create_app() -> Flask:
    """Create the app, which may not survive its loading in a worker."""
    if os.environ.get("RAISING_AT_LOAD"):
        raise KINDS[os.environ["RAISING_AT_LOAD"]]
    app = Flask("raising")
    app.config.from_mapping(WORKERSIZE_HOST="127.0.0.1", WORKERSIZE_PORT=0)
    WorkerSizing(app)

    @app.get("/")
    def index() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/raise")
    def raising() -> Any:
        error, place = KINDS[request.args["kind"]](3), request.args["place"]
        if place == "view":
            raise error
        if "file" in place:
            file = SeekableFile(error) if place == "seekable file" else File(error)
            body = request.environ["wsgi.file_wrapper"](file)
            return Response(body, direct_passthrough=True)
        return Response(Body(error, place), direct_passthrough=True)

    @app.get("/exit")
    def end() -> NoReturn:
        os._exit(int(request.args["status"]))

    return app
