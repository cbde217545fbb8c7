"""An open loop of clients: each comes when it is due, however many still wait, and gives up.

``python -m tests.benchmarks.open_loop PORT RATE SECONDS PATIENCE`` prints as JSON what
:class:`Flood` holds. It is a process of its own, so that who measures does not slow the clients.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass

HOST = "127.0.0.1"
PATH = "/wait"
REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
OK = "200"
IDLE_REQUESTS = 10
QUICK = 1.5
"""A request counts as answered as when idle within so many times the median of those before."""
IN_A_ROW = 3
"""So many quick answers: a single one may have met the one worker that was free."""
RECOVERY_SECONDS = 30
"""How long after the flood a server is waited for."""


@dataclass(frozen=True)
class Flood:
    """What became of the clients.

    :param outcomes: what each client got, and after how many seconds: a status, ``timeout``,
        ``refused``, ``reset``, ``closed`` (without a whole answer), or the name of another error
        of a socket; of the second half of the flood, but for those who may outlast it
    :param idle: seconds that a request takes without load
    :param recovery: seconds from when the last client has its answer or has given up until a
        request was answered as when idle; ``None`` if that took longer than 30 s
    :param late: most seconds by which a client came later than it was due
    """

    outcomes: list[tuple[str, float]]
    idle: float
    recovery: float | None
    late: float


class Client(asyncio.Protocol):
    """Sends one request, and notes what came of it.

    :param done: gets a status, ``closed`` or the error of the socket
    """

    def __init__(self, done: asyncio.Future[str]) -> None:
        self._done = done
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self._read += data
        if status := status_of(self._read):
            self._tell(status)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._tell(status_of(self._read, is_over=True) or "closed")
        elif not self._done.done():
            self._done.set_exception(exc)

    def _tell(self, what: str) -> None:
        if not self._done.done():
            self._done.set_result(what)


def status_of(response: bytes, is_over: bool = False) -> str:
    """Return the status of a response that is whole, else nothing.

    :param is_over: whether no more of it will come, which ends one without a length
    """
    head, _, body = response.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})", head)
    length = re.search(rb"\r\ncontent-length: *([0-9]{1,6})(?:\r\n|$)", head, re.I)
    is_whole = len(body) >= int(length[1]) if length else is_over
    return status[1].decode() if status and is_whole else ""


async def ask(port: int, patience: float) -> tuple[str, float]:
    """Send one request on a new connection; return what came of it, and after how long."""
    begun = time.monotonic()
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()
    transport = None
    try:
        async with asyncio.timeout(patience):
            transport, _ = await loop.create_connection(lambda: Client(done), HOST, port)
            what = await done
    except TimeoutError:
        what = "timeout"
    except ConnectionRefusedError:
        what = "refused"
    except (ConnectionResetError, BrokenPipeError):
        what = "reset"
    except OSError as error:
        what = errno.errorcode.get(error.errno or 0, "error")
    finally:
        if transport:
            transport.close()
    return what, time.monotonic() - begun


async def idle(port: int) -> float:
    """Return how long a request takes without load: the median of some.

    :raises RuntimeError: if one fails
    """
    asked = [await ask(port, RECOVERY_SECONDS) for _ in range(IDLE_REQUESTS)]
    if failed := {what for what, _ in asked} - {OK}:
        raise RuntimeError(f"without load: {', '.join(failed)}")
    return statistics.median(seconds for _, seconds in asked)


async def recovery(port: int, quick: float, patience: float) -> float | None:
    """Ask one request at a time until the answers are quick, and return after how long they were.

    :param quick: seconds within which an answer is quick
    :param patience: seconds after which one is given up, and the next one sent
    """
    begun = time.monotonic()
    first, count = 0.0, 0
    while (left := begun + RECOVERY_SECONDS - time.monotonic()) > 0:
        what, seconds = await ask(port, min(left, patience))
        if what == OK and seconds <= quick:
            first = first if count else time.monotonic() - begun
            count += 1
            if count == IN_A_ROW:
                return first
        else:
            count = 0
            # A refusal is quick: without a pause these were a flood of their own.
            await asyncio.sleep(0 if what == OK else quick)
    return None


async def flood(port: int, rate: float, seconds: float, patience: float) -> Flood:
    """Flood a server, and wait until it is back.

    :param rate: new connections a second
    :param seconds: for how long they come
    :param patience: seconds after which a client gives up
    """
    alone = await idle(port)
    begun, late = time.monotonic(), 0.0
    clients = []
    for number in range(round(rate * seconds)):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        late = max(late, time.monotonic() - due)
        clients.append(asyncio.create_task(ask(port, patience)))
    outcomes = await asyncio.gather(*clients)
    counted = outcomes[len(outcomes) // 2 : round(rate * (seconds - patience))]
    return Flood(counted, alone, await recovery(port, QUICK * alone, patience), late)


def main() -> None:
    """Flood the server that was named, and print what came of it."""
    port, *others = sys.argv[1:]
    rate, seconds, patience = map(float, others)
    print(json.dumps(asdict(asyncio.run(flood(int(port), rate, seconds, patience)))))


if __name__ == "__main__":
    main()
