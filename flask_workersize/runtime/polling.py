"""Wait for files that can be read, also in a process that holds more than 1,023 of them."""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Protocol, TypeVar


class _Opened(Protocol):
    def fileno(self) -> int: ...


_File = TypeVar("_File", bound=int | _Opened)

_LONGEST_MS = 2**31 - 1


def wait_readable(files: Iterable[_File], seconds: float | None) -> list[_File]:
    """Wait until a file can be read without blocking, or its other end is closed.

    With poll(2): select(2) fails for a descriptor above 1,023, however few are waited for. Windows
    has only select(), which ignores the numbers there.

    :param seconds: how long to wait at most; ``None`` for as long as it takes
    :return: the files for which that holds
    """
    by_number = {item if isinstance(item, int) else item.fileno(): item for item in files}
    if not hasattr(select, "poll"):
        return [by_number[number] for number in select.select(list(by_number), [], [], seconds)[0]]
    poll = select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    milliseconds = None if seconds is None else min(seconds * 1000, _LONGEST_MS)
    return [by_number[number] for number, _ in poll.poll(milliseconds)]


def hung_up(files: Iterable[_File]) -> list[_File]:
    """Return the connections whose other end has closed them, or its half of them.

    None on systems that do not report it (``POLLRDHUP``, poll(2), Linux).
    """
    if not (hasattr(select, "poll") and hasattr(select, "POLLRDHUP")):
        return []
    by_number = {item if isinstance(item, int) else item.fileno(): item for item in files}
    poll = select.poll()
    for number in by_number:
        if number >= 0:
            poll.register(number, select.POLLRDHUP)
    return [by_number[number] for number, _ in poll.poll(0)]
