"""Which word of the scoreboard is what: see :mod:`flask_workersize.runtime.scoreboard`."""

from __future__ import annotations

from . import figures

NANOSECONDS = 1_000_000_000
MOST_LISTENERS = 8


class Header:
    """The words of the header; :data:`~flask_workersize.runtime.figures.STORED` follow them."""

    VERSION = 0
    STATE = 1
    QUEUE = 2
    PLANNED = 3
    FOR_LIMITS = 4
    STAND_INS = 5
    REMOVED = 6
    FOLLOWED_MEMORY = 7
    FOLLOWED_CPUS = 8
    GUARD = 9
    EXIT_ASKED = 10
    WORKERS_OOM_KILLED = 11
    TRAFFIC = 12
    LISTENERS = 17
    FIRST_LISTENER = 18
    STORED = FIRST_LISTENER + MOST_LISTENERS
    WORDS = STORED + len(figures.STORED)


TRAFFIC = slice(Header.TRAFFIC, Header.LISTENERS)


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
    BOOT_PEAK = 17
    FILE = 18
    NEEDED = 19
    CLAIMED = 20
    WORDS = 21


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
