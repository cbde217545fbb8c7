"""How long requests wait for a slot, and how many replicas keep that short; pure.

A fleet is a queue with many servers, where a server is a slot: one worker thread. Requests come at
random and take times that are spread exponentially about their mean (M/M/c). Two ways of spreading
them over the replicas are calculated:

- **pooled**: one queue for all slots of the fleet. A balancer with least connections that holds
  the queue itself (``maxconn``) comes close to it.
- **split**: a queue for each replica, which takes its share of the requests, whoever else is idle.
  That is what a random choice does, a Service of Kubernetes for example. A choice by turns (round
  robin) waits less than that: for it, split is an upper bound.

Sources: A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in
automatic telephone exchanges" (1917), for the share that waits; L. Kleinrock, "Queueing Systems",
volume 1 (1975), section 3.5, for the spread of the waiting time; A. A. Jagers and E. A. van Doorn,
"On the continued Erlang loss function" (1986), for the recursion.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import count

MOST_LOAD = 1_000_000
"""Most requests at once that are calculated with: beyond it there is a slip of the finger."""


def erlang_b(load: float) -> Iterator[float]:
    """Yield the share of requests that find no free slot, for 1, 2, 3 ... slots and no queue.

    The recursion ``B(0) = 1, B(n) = load × B(n - 1) / (n + load × B(n - 1))`` adds and divides
    numbers of one sign, so that it stays exact for any number of slots, unlike powers and
    factorials.

    :param load: requests a second × seconds a request, above 0
    """
    blocked = 1.0
    for slots in count(1):
        blocked = load * blocked / (slots + load * blocked)
        yield blocked


def erlang_c(slots: int, load: float) -> float:
    """Return the share of requests that have to wait, 0 to 1.

    ``C = n × B / (n - load × (1 - B))``, with B of Erlang's loss formula.

    :param slots: at least 1
    :param load: requests a second × seconds a request; 1 is returned from ``slots`` on
    """
    if load >= slots:
        return 1.0
    blocked = next(b for n, b in enumerate(erlang_b(load), 1) if n == slots) if load else 0.0
    return _waiting(slots, load, blocked)


def _waiting(slots: int, load: float, blocked: float) -> float:
    return slots * blocked / (slots - load * (1 - blocked))


def wait_seconds(slots: int, load: float, service_seconds: float, share: float = 0.95) -> float:
    """Return the waiting time that a share of the requests stays within, in seconds.

    Those that wait do so for a time that is spread exponentially, so the share ``q`` is within
    ``service / (n - load) × ln(C / (1 - q))``, or 0 where fewer than ``1 - q`` wait at all.

    :param slots: slots of one queue, at least 1
    :param load: requests a second × seconds a request; infinite from ``slots`` on
    :param service_seconds: mean time of a request, in seconds
    :param share: share of the requests, 0 to 1
    """
    if load >= slots:
        return math.inf
    return _quantile(slots, load, service_seconds, share, erlang_c(slots, load))


def _quantile(slots: int, load: float, service: float, share: float, waiting: float) -> float:
    if waiting <= 1 - share:
        return 0.0
    return service / (slots - load) * math.log(waiting / (1 - share))


def replicas_pooled(
    slots: int, load: float, service_seconds: float, most_wait: float, share: float = 0.95
) -> int:
    """Return the fewest replicas that keep the wait short if they have one queue.

    :param slots: slots of a replica, at least 1
    :param load: requests a second × seconds a request, of the whole fleet
    :param service_seconds: mean time of a request, in seconds
    :param most_wait: the wait that a share of the requests has to stay within, in seconds
    :param share: share of the requests, 0 to 1
    """
    if not load:
        return 1
    for total, blocked in enumerate(erlang_b(load), 1):
        if total > load and total % slots == 0:
            waiting = _waiting(total, load, blocked)
            if _quantile(total, load, service_seconds, share, waiting) <= most_wait:
                return total // slots
    raise AssertionError("the loop ends only so")


def replicas_split(
    slots: int, load: float, service_seconds: float, most_wait: float, share: float = 0.95
) -> int:
    """Return the fewest replicas that keep the wait short if each has a queue of its own.

    The parameters are those of :func:`replicas_pooled`.
    """

    def is_short(replicas: int) -> bool:
        return wait_seconds(slots, load / replicas, service_seconds, share) <= most_wait

    least = math.floor(load / slots) + 1
    most = least
    while not is_short(most):
        most *= 2
    return least + bisect_left(range(least, most), True, key=is_short)
