"""Which word of the scoreboard is what: see :mod:`flask_workersize.runtime.scoreboard`."""

from __future__ import annotations

NANOSECONDS = 1_000_000_000
MOST_LISTENERS = 8


class Header:
    """The words of the header."""

    VERSION = 0
    STATE = 1
    RESTARTS = 2
    CRASHED = 3
    SERVED_BEFORE = 4
    BUSY_BEFORE = 5
    QUEUE = 6
    PLANNED = 7
    ADJUSTMENT = 8
    MEMORY_LIMIT = 9
    MEMORY_USED = 10
    RECYCLED = 11
    OOM_KILLS = 12
    GUARD = 13
    EXIT_ASKED = 14
    WORKERS_OOM_KILLED = 15
    CPU_BEFORE = 16
    LEARNT = 17
    LISTENERS = 22
    FIRST_LISTENER = 23
    WORDS = 23 + MOST_LISTENERS


LEARNT = slice(Header.LEARNT, Header.LISTENERS)


class Cell:
    """The words of a row, before its slots."""

    AGE = 0
    BORN = 1
    PID = 2
    START_TIME = 3
    READY = 4
    HEARTBEAT = 5
    LEFT = 6
    HELD = 7
    TOLD = 8
    RSS = 9
    PSS = 10
    PRIVATE = 11
    FIRST = 12
    WARM = 13
    PEAK = 14
    SAMPLED_AFTER = 15
    SAMPLED = 16
    WORDS = 17


class Slot:
    """The words of a slot: plain numbers, since an enumeration costs time at every request.

    ``BEGUN`` is when the running request began, in nanoseconds of the monotonic clock, 0 where
    none runs; ``SERVED`` counts requests, ``BUSY`` the nanoseconds spent on them. ``CPU`` are those
    that the thread had computed when the last one ended, ``CPU_BEFORE`` when the first one began.
    """

    BEGUN = 0
    SERVED = 1
    BUSY = 2
    CPU = 3
    CPU_BEFORE = 4
    WORDS = 5
