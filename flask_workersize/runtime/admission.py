"""Which requests are computed: the rule, and the waiting time that a proxy reports.

Pure: times and answers are passed in. :mod:`flask_workersize.runtime.meter` calls it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import Enum

GONE_SECONDS = 0.5
"""After such a wait it is checked whether the client is still there. Before, a client that
closes its half of the connection after its request is served as usual."""

MOST_PROXY_SECONDS = 60.0
"""The longest wait that a proxy's clock alone may turn a request away for."""

_NONSENSE_SECONDS = 3600.0
"""No proxy holds a request for so long: its clock is wrong."""


class Verdict(Enum):
    """What to do with a request that is about to begin."""

    SERVE = "serve"
    ABANDONED = "abandoned"
    SHED = "shed"


def judge(
    waited: float, bound: float | None, has_gone: Callable[[], bool], is_stopping: bool
) -> Verdict:
    """Return what to do with a request.

    :param waited: seconds that it has waited, at least 0
    :param bound: seconds that it may have waited; ``None`` for no bound
    :param has_gone: returns whether its client has hung up; called only if it matters
    :param is_stopping: whether the server stops, when every client is taken at its word
    """
    if waited > GONE_SECONDS and not is_stopping and has_gone():
        return Verdict.ABANDONED
    if bound is not None and waited > bound:
        return Verdict.SHED
    return Verdict.SERVE


_STAMP = re.compile(r"(?:t=)?([0-9]{1,20}(?:\.[0-9]{0,9})?)s?")
_UNITS = ((1e14, 1e6), (1e11, 1e3), (1e8, 1.0))
"""From which number on it is how many to a second: microseconds, milliseconds, seconds."""


def proxy_seconds(header: str, now: float) -> float | None:
    """Return how long ago a proxy got a request, by its ``X-Request-Start``.

    The header is the time since 1970, with or without "t=", in seconds (HAProxy, nginx:
    ``$msec``), milliseconds (Heroku) or microseconds (Apache: ``%t``); the size of the number shows
    which, for any time between 1973 and 5138.

    :param header: what was sent
    :param now: seconds since 1970
    :returns: seconds, at least 0; ``None`` for an invalid time, the future, or too long ago
    """
    match = _STAMP.fullmatch(header.strip())
    if match is None:
        return None
    number = float(match[1])
    unit = next((unit for least, unit in _UNITS if number >= least), None)
    if unit is None:
        return None
    seconds = now - number / unit
    return seconds if 0 <= seconds < _NONSENSE_SECONDS else None


class ProxyClock:
    """Separates waiting from clock error: another machine's clock can make all requests late.

    The least delay of all requests of the last minute counts as clock error.
    """

    _HALF_SECONDS = 30.0

    def __init__(self) -> None:
        self._half = -math.inf
        self._least = self._least_before = math.inf

    def excess(self, seconds: float, now: float) -> float:
        """Return how much later a request is than the least late one of the last minute.

        :param seconds: how long ago it began, by the proxy
        :param now: seconds of a monotonic clock
        :returns: seconds, 0 to :data:`MOST_PROXY_SECONDS`
        """
        half = now // self._HALF_SECONDS
        if half != self._half:
            is_next = half == self._half + 1
            self._least_before = self._least if is_next else math.inf
            self._half, self._least = half, math.inf
        self._least = min(self._least, seconds)
        return min(seconds - min(self._least, self._least_before), MOST_PROXY_SECONDS)
