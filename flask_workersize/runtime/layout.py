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
    OTHERS_OOM_KILLED = 12
    OOM_COUNTED = 13
    OOM_ANSWERED = 14
    CRASHES_SEEN = 15
    SETTLES_AT = 16
    ADDED_AT = 17
    REMOVED_AT = 18
    ADDED_IN_VAIN = 19
    AVAILABLE_MB = 20
    TRAFFIC = 21
    LISTENERS = 26
    QUEUE_MEAN = 27
    QUEUE_MOST = 28
    THREADS = 29
    FOR_LOAD = 30
    STARTED = 31
    FIRST_LISTENER = 32
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
    CRASH = 20
    FIRST_SINCE = 21
    FIRST_TOOK = 22
    CLAIMED = 23
    WORDS = 24


class Slot:
    """The words of a slot: plain numbers, since an enumeration costs time at every request.

    ``BEGUN`` is when the running request began, in nanoseconds of the monotonic clock, 0 where
    none runs; ``SERVED`` counts requests, ``BUSY`` the nanoseconds spent on them. ``CPU`` are those
    that the thread had computed when the last one ended, ``CPU_BEFORE`` when the first one began.
    ``CPU_WAIT`` are those in which it waited for a CPU. ``ALONE`` counts requests that ran alone in
    their process, ``ALONE_CPU`` and ``ALONE_WAIT`` what they computed and waited.
    """

    BEGUN = 0
    SERVED = 1
    BUSY = 2
    CPU = 3
    CPU_BEFORE = 4
    CPU_WAIT = 5
    ALONE = 6
    ALONE_CPU = 7
    ALONE_WAIT = 8
    WORDS = 9
