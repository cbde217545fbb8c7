"""What is happening now: one table in memory that all processes of a deployment share.

It is made before the first fork, has no name and no file, and is gone with the last process. A
header describes the whole deployment, a row each worker, and in a row there is a slot for each
thread that serves. Every cell is an aligned word of 8 bytes, which a processor stores as a whole,
and has one writer, so that no lock is needed and a process that is killed at any moment leaves
nothing half-written:

- the master writes the header, and gives and takes rows;
- a worker's main thread writes its process id, its start, its heartbeat, whether it is ready, how
  many connections it holds, and its first request;
- each of its threads writes a slot;
- the monitor writes memory, and what it wants done about it.

(Two have more writers: the length of waitress' queue, by the thread that has just read it, and what
a threaded worker holds, by the threads that have just changed it, one at a time.)

A row is read for as long as its worker lives. What it counted is then added to the header, so that
totals never decrease; the version of the header is odd until that is done, and readers retry.
"""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Generic, TypeVar

from ..resources.processes import ProcessMemory, ResidentPeak
from .events import LOG_BYTES, EventLog
from .figures import STORED, SUMMED
from .history import WORDS as HISTORY_WORDS
from .history import LastHour
from .layout import MOST_LISTENERS, NANOSECONDS, TRAFFIC, Cell, Header, Slot
from .queue_times import WORDS as QUEUE_WORDS
from .queue_times import QueueTimes
from .snapshot import (
    AloneTotals,
    GuardState,
    Snapshot,
    State,
    TrafficStats,
    WorkerMemory,
    WorkerStats,
)
from .worker_record import WorkerRecord

_WORD = 8
_STORED = {name: Header.STORED + number for number, name in enumerate(STORED)}
_MOST_BYTES = 256 * 1024 * 1024
_SPARE_ROWS = 64
_MOST_READS = 100
_READ_AGAIN_SECONDS = 0.001
_SILENT_NANOSECONDS = 3 * NANOSECONDS
"""After so long a threaded worker's main loop counts as hung: it runs once a second. Only those are
compared; gunicorn's sync worker may wait longer for its next request."""


T = TypeVar("T", bound=int)


class _Word(Generic[T]):
    """A word of the header, as an attribute of the table."""

    def __init__(self, word: int, kind: Callable[[int], T]) -> None:
        self._word = word
        self._kind = kind

    def __get__(self, board: Scoreboard, owner: object = None) -> T:
        return self._kind(board.cells[self._word])

    def __set__(self, board: Scoreboard, value: T) -> None:
        board.cells[self._word] = value


class _Moment:
    """A word of the header that is a time of the monotonic clock, in seconds; long ago at first.

    That clock is the same in all processes.
    """

    def __init__(self, word: int) -> None:
        self._word = word

    def __get__(self, board: Scoreboard, owner: object = None) -> float:
        nanoseconds = board.cells[self._word]
        return nanoseconds / NANOSECONDS if nanoseconds else float("-inf")

    def __set__(self, board: Scoreboard, at: float) -> None:
        board.cells[self._word] = 0 if at == float("-inf") else round(at * NANOSECONDS)


class Scoreboard:
    """The shared table. Make it before the first fork."""

    state = _Word(Header.STATE, State)
    """State of the deployment; only the master sets it."""

    planned = _Word(Header.PLANNED, int)
    """Planned workers; only the master sets it, also on TTIN and TTOU."""

    for_limits = _Word(Header.FOR_LIMITS, int)
    """Workers more, or fewer, than planned since the limits have changed; as what follows, only the
    monitor sets it, and one that is started again goes on from there."""

    stand_ins = _Word(Header.STAND_INS, int)
    """Workers more that are to take over from a last one."""

    removed = _Word(Header.REMOVED, int)
    """Workers that the memory guard has removed."""

    followed_memory = _Word(Header.FOLLOWED_MEMORY, int)
    """The limit on memory that was followed, in bytes; 0 if it has not changed."""

    followed_cpus = _Word(Header.FOLLOWED_CPUS, int)
    """The CPUs that were followed, in thousandths."""

    settles_at = _Moment(Header.SETTLES_AT)
    """Until when more workers are planned if more memory proves to be available."""

    available_mb = _Word(Header.AVAILABLE_MB, int)
    """Memory that was planned with since the limits have changed, in MB; 0 if they have not."""

    added_at = _Moment(Header.ADDED_AT)
    """When the memory guard has added a worker again, unless it has removed one since."""

    removed_at = _Moment(Header.REMOVED_AT)
    """When it has removed one."""

    added_in_vain = _Word(Header.ADDED_IN_VAIN, int)
    """How often it had to remove again what it had added."""

    guard = _Word(Header.GUARD, GuardState)
    """State of the memory guard; only the monitor sets it."""

    workers_oom_killed = _Word(Header.WORKERS_OOM_KILLED, int)
    """Workers that the OOM killer has killed; only the monitor sets it, as what follows."""

    others_oom_killed = _Word(Header.OTHERS_OOM_KILLED, int)
    """Processes that it has killed, and that were no workers."""

    oom_answered = _Word(Header.OOM_ANSWERED, int)
    """Of the workers that it has killed those for which the memory guard has done something."""

    oom_counted = _Word(Header.OOM_COUNTED, int)
    """The kernel's own count at the last check; below 0 before the first."""

    crashes_seen = _Word(Header.CRASHES_SEEN, int)
    """Crashed workers of which it is known whether the OOM killer ended them."""

    is_exit_asked = _Word(Header.EXIT_ASKED, bool)
    """Whether the memory guard wants a server of one process to be started again."""

    task_queue = _Word(Header.QUEUE, int)
    """Requests that wait in waitress for a thread."""

    for_load = _Word(Header.FOR_LOAD, int)
    """Workers more than planned since the load was followed; only the monitor sets it."""

    workers_advised = _Word(Header.WORKERS_ADVISED, int)
    """How many workers were recommended last, since so many as planned do not fit; 0 for none."""

    threads = _Word(Header.THREADS, int)
    """Requests that may run at once in a worker; only the monitor changes it."""

    def __init__(
        self, workers: int, threads: int, most_workers: int = 0, most_threads: int = 0
    ) -> None:
        self.most_threads = max(threads, most_threads)
        self._slots_most = max(workers, most_workers) * self.most_threads
        self._row_words = Cell.WORDS + self.most_threads * Slot.WORDS
        wanted = 2 * max(workers, most_workers) + _SPARE_ROWS
        words = self._row_words + self.most_threads * QUEUE_WORDS
        self.capacity = max(1, min(wanted, _MOST_BYTES // (words * _WORD)))
        own = Header.WORDS + self.capacity * self._row_words
        with_queue = own + self.capacity * self.most_threads * QUEUE_WORDS
        with_history = with_queue + HISTORY_WORDS
        memory = mmap.mmap(-1, with_history * _WORD + LOG_BYTES)
        shared: memoryview[int] = memoryview(memory).cast("q")
        self.cells, self.queue_times = shared[:own], QueueTimes(shared[own:with_queue])
        self.last_hour = LastHour(shared[with_queue:with_history])
        self.events = EventLog(shared[with_history:].cast("B"))
        self.note_queue(None)
        self.planned, self.threads = workers, threads
        self.oom_counted = -1
        self.cells[Header.STARTED] = time.monotonic_ns()
        self._given: dict[int, int] = {}
        self._next_row = 0

    @property
    def fitting(self) -> int:
        """Workers that are planned for the limits that there are now, at least 1."""
        return max(1, self.planned + self.for_limits + self.for_load)

    @property
    def wanted(self) -> int:
        """Target number of workers, at least 1."""
        return max(1, self.fitting + self.stand_ins - self.removed)

    def count(self, name: str, more: int = 1) -> None:
        """Add to a word of :data:`~flask_workersize.runtime.figures.STORED`."""
        self.cells[_STORED[name]] += more

    def figure(self, name: str) -> int:
        """Return such a word alone: much cheaper than all that can be read."""
        return self.cells[_STORED[name]]

    def note_usage(self, limit_bytes: int, used_bytes: int) -> None:
        """Write down how near memory is to its limit."""
        self.cells[_STORED["memory_limit_bytes"]] = limit_bytes
        self.cells[_STORED["memory_used_bytes"]] = used_bytes

    def note_queue(self, waits: tuple[int, int] | None) -> None:
        """Write down the mean and the longest wait of the last minute, in nanoseconds."""
        self.cells[Header.QUEUE_MEAN], self.cells[Header.QUEUE_MOST] = waits or (-1, -1)

    def note_traffic(self, traffic: TrafficStats) -> None:
        """Write down what the app costs."""
        for offset, value in reversed(list(enumerate(traffic))):
            self.cells[Header.TRAFFIC + offset] = value

    def tell_to_leave(self, number: int, is_told: bool = True) -> None:
        """Write down whether a worker is recycled: it need not wait for the stop of the server."""
        self.cells[self._start(number) + Cell.TOLD] = is_told

    def set_listeners(self, sockets: Iterable[socket.socket]) -> None:
        """Store the listeners, so that processes without them can query their queue."""
        try:
            known = [(int(item.family) << 32) | os.fstat(item.fileno()).st_ino for item in sockets]
        except OSError:
            # A socket of Windows is no file.
            self.cells[Header.LISTENERS] = MOST_LISTENERS + 1
            return
        for number, listener in enumerate(known[:MOST_LISTENERS]):
            self.cells[Header.FIRST_LISTENER + number] = listener
        self.cells[Header.LISTENERS] = len(known)

    @property
    def listeners(self) -> list[tuple[int, int]] | None:
        """The listeners, as address family and inode; ``None`` where they are not known.

        There may be more than there is room for, and a system may have no inodes for them.
        """
        count = self.cells[Header.LISTENERS]
        if count > MOST_LISTENERS:
            return None
        first = Header.FIRST_LISTENER
        return [(word >> 32, word & 0xFFFFFFFF) for word in self.cells[first : first + count]]

    def allocate(self, age: int) -> WorkerRecord | None:
        """Give a worker that is about to be forked a row."""
        free = self._free()
        if not free:
            return None
        # Not the one that has just become free: what its worker has left there can be read.
        number = min(free, key=lambda number: (number - self._next_row) % self.capacity)
        self._next_row = number + 1
        start = self._start(number)
        for offset in range(1, self._row_words):
            self.cells[start + offset] = 0
        self.cells[start + Cell.BORN] = time.monotonic_ns()
        self.cells[start] = age
        self._given[age] = number
        return self.record_of(age)

    def record_of(self, age: int) -> WorkerRecord | None:
        """Return the row that was given to a worker; ``None`` if it has none."""
        number = self._given.get(age)
        if number is None:
            return None
        start, queue = self._start(number), self.queue_times.row(number, self.most_threads)
        return WorkerRecord(self.cells, start, self.most_threads, self._others, queue)

    def release(self, age: int) -> None:
        """Take the row of a worker that has ended, and keep what it counted."""
        number = self._given.pop(age, None)
        if number is None:
            return
        start = self._start(number)
        self.cells[Header.VERSION] += 1
        try:
            worker = self._read_row(number)
            for name in SUMMED:
                self.count(name, getattr(worker, name))
            # Time that threads spent on a request counts, also if that was their end.
            self.count("busy_ns", round(sum(worker.running_seconds) * NANOSECONDS))
            if self.state < State.STOPPING:
                self.count("restarts")
            has_left = self.cells[start + Cell.LEFT]
            self.cells[start + Cell.CRASH] = 0 if has_left else self.figure("crashed") + 1
            self.cells[start] = 0
            if not has_left:
                # Last, so that a reader of this word alone finds the row free.
                self.count("crashed")
        finally:
            self.cells[Header.VERSION] += 1

    def sweep(self, alive: Iterable[int]) -> None:
        """Take the rows of workers that are gone without a word."""
        for age in set(self._given) - set(alive):
            self.release(age)

    def read(self, but: int | None = None) -> Snapshot:
        """Return the table as it is now."""
        for _ in range(_MOST_READS):
            version = self.cells[Header.VERSION]
            snapshot = self._read(but)
            if version % 2 == 0 and version == self.cells[Header.VERSION]:
                break
            # The master may wait for a CPU in the middle of it; it may also have been killed there.
            time.sleep(_READ_AGAIN_SECONDS)
        return snapshot

    def crashed(self, numbers: Container[int]) -> list[WorkerStats]:
        """Return what crashed workers have left in rows that have not been reused.

        :param numbers: which of them, the first that crashed being 1
        """
        free = self._free()
        rows = [
            number for number in free if self.cells[self._start(number) + Cell.CRASH] in numbers
        ]
        return [row for row in map(self._read_row, rows) if row.pid]

    def _read(self, but: int | None) -> Snapshot:
        cells = self.cells
        rows = [self._read_row(number, but) for number, age in enumerate(self._ages()) if age]
        return Snapshot(
            state=self.state,
            workers=tuple(rows),
            stored=dict(zip(STORED, cells[Header.STORED : Header.WORDS].tolist(), strict=True)),
            task_queue=self.task_queue,
            wanted=self.wanted,
            workers_oom_killed=cells[Header.WORKERS_OOM_KILLED],
            guard=GuardState(cells[Header.GUARD]),
            traffic=TrafficStats(*cells[TRAFFIC]) if cells[Header.TRAFFIC] else None,
            slots_most=self._slots_most,
            waits=_waits(cells[Header.QUEUE_MEAN], cells[Header.QUEUE_MOST]),
            uptime_seconds=_seconds(time.monotonic_ns() - cells[Header.STARTED]),
            cpus=cells[Header.FOLLOWED_CPUS] / 1000,
            workers_advised=cells[Header.WORKERS_ADVISED],
        )

    def _others(self, mine: int) -> tuple[int | None, bool]:
        """Return what other workers hold that take requests; one that hangs is none."""
        first, step = Header.WORDS, self._row_words
        since = time.monotonic_ns() - _SILENT_NANOSECONDS
        columns = (Cell.AGE, Cell.READY, Cell.CLAIMED, Cell.HEARTBEAT)
        rows = zip(*(self.cells[first + column :: step] for column in columns), strict=True)
        held = {
            number: held
            for number, (age, ready, held, beat) in enumerate(rows)
            if age and age != mine and ready and held >= 0 and beat > since
        }
        least = min(held.values(), default=None)
        return least, any(self._has_free_slot(n) for n, count in held.items() if count == least)

    def first_requests(self, mine: WorkerRecord, seconds: float) -> tuple[int, int]:
        """Return how many other workers began their first request shortly before this one.

        And the most that a worker has taken since it was ready, in bytes; those that have ended
        count as long as their rows are there, since the kernel may have killed them for it.
        """
        columns = (Cell.AGE, Cell.FIRST_SINCE, Cell.FIRST_TOOK, Cell.NEEDED, Cell.FIRST)
        first, step = Header.WORDS, self._row_words
        rows = list(zip(*(self.cells[first + column :: step] for column in columns), strict=True))
        now = mine.first_since
        earliest = max(now - int(seconds * NANOSECONDS), 0)
        beginning = sum(age != 0 and earliest < since < now for age, since, *_ in rows)
        most = max(max(took, needed - max(own, 0)) for *_, took, needed, own in rows)
        return beginning, max(most, 0)

    def _has_free_slot(self, number: int) -> bool:
        first = self._start(number) + Cell.WORDS
        begun = self.cells[first : self._start(number + 1) : Slot.WORDS].tolist()
        return len(begun) - begun.count(0) < self.threads

    def _ages(self) -> list[int]:
        return self.cells[Header.WORDS :: self._row_words].tolist()

    def _free(self) -> list[int]:
        return [number for number, age in enumerate(self._ages()) if not age]

    def _read_row(self, number: int, but: int | None = None) -> WorkerStats:
        start, now = self._start(number), time.monotonic_ns()
        cells = self.cells[start : start + self._row_words].tolist()
        held: int = cells[Cell.HELD]
        if but is not None and start < but < start + self._row_words:
            cells[but - start] = 0
            held -= 1
        slots = cells[Cell.WORDS :]
        return WorkerStats(
            number=number,
            age=cells[Cell.AGE],
            pid=cells[Cell.PID],
            start_time=cells[Cell.START_TIME],
            is_ready=cells[Cell.READY] != 0,
            lived_seconds=_seconds(now - cells[Cell.BORN]),
            silent_seconds=_seconds(now - max(cells[Cell.HEARTBEAT], cells[Cell.BORN])),
            running_seconds=tuple(_seconds(now - since) for since in slots[:: Slot.WORDS] if since),
            slots=self.threads,
            held=max(held, 0),
            waiting=max(held - self.threads, 0),
            is_leaving=cells[Cell.TOLD] != 0,
            served=sum(slots[Slot.SERVED :: Slot.WORDS]),
            busy_ns=sum(slots[Slot.BUSY :: Slot.WORDS]),
            cpu_wait_ns=sum(slots[Slot.CPU_WAIT :: Slot.WORDS]),
            alone=AloneTotals(
                sum(slots[Slot.ALONE :: Slot.WORDS]),
                sum(slots[Slot.ALONE_CPU :: Slot.WORDS]),
                sum(slots[Slot.ALONE_WAIT :: Slot.WORDS]),
            ),
            cpu_ns=_computed(slots),
            memory=_memory(cells, now) if cells[Cell.SAMPLED] else None,
        )

    def note_memory(
        self, number: int, memory: ProcessMemory, peak: ResidentPeak, served: int, is_warm: bool
    ) -> WorkerMemory:
        """Enter a full sample of a worker, and return what is known of its memory now."""
        start = self._start(number)
        cells = self.cells[start : start + Cell.WORDS]
        is_first = not cells[Cell.SAMPLED]
        rss, uss = memory.rss_bytes, memory.uss_bytes
        if uss is None:
            uss = 0 if is_first else self._private_at(cells, rss)
        if is_first:
            cells[Cell.FIRST] = -1 if memory.uss_bytes is None else uss
            cells[Cell.WARM] = -1
            # What it took to load the app it need not take again.
            cells[Cell.BOOT_PEAK] = peak.most_bytes
            cells[Cell.FILE] = cells[Cell.NEEDED] = 0
        if is_warm and cells[Cell.WARM] < 0:
            cells[Cell.WARM] = uss
        cells[Cell.RSS] = rss
        cells[Cell.PSS] = -1 if memory.pss_bytes is None else memory.pss_bytes
        cells[Cell.PRIVATE] = uss
        cells[Cell.PEAK] = max(uss + max(peak.most_bytes - rss, 0), cells[Cell.PEAK])
        self._note_needed(cells, peak)
        cells[Cell.SAMPLED_AFTER] = served
        cells[Cell.SAMPLED] = now = time.monotonic_ns()
        return _memory(cells, now)

    def note_resident(
        self, number: int, rss_bytes: int, peak: ResidentPeak | None = None
    ) -> WorkerMemory:
        """Enter the resident memory of a worker that was sampled in full before."""
        start = self._start(number)
        cells = self.cells[start : start + Cell.WORDS]
        private = self._private_at(cells, rss_bytes)
        cells[Cell.RSS], cells[Cell.PRIVATE] = rss_bytes, private
        if peak:
            self._note_needed(cells, peak)
        return _memory(cells, time.monotonic_ns())

    def note_surge(self, number: int, took_bytes: int) -> WorkerMemory:
        """Enter what a running request has taken so far, of what a worker had when last entered."""
        start = self._start(number)
        cells = self.cells[start : start + Cell.WORDS]
        before, warm = cells[Cell.PRIVATE] - took_bytes, cells[Cell.WARM]
        base = before if warm < 0 else min(before, warm)
        cells[Cell.NEEDED] = max(cells[Cell.NEEDED], base + took_bytes)
        return _memory(cells, time.monotonic_ns())._replace(surge_bytes=took_bytes)

    @staticmethod
    def _note_needed(cells: memoryview[int], peak: ResidentPeak) -> None:
        """Enter what a worker has now without growth, and what it has given back."""
        cells[Cell.FILE] = max(cells[Cell.FILE], peak.file_bytes)
        dropped = cells[Cell.FILE] - peak.file_bytes
        is_later = peak.most_bytes > cells[Cell.BOOT_PEAK]
        given_back = peak.given_back_bytes - dropped if is_later else 0
        private, warm = cells[Cell.PRIVATE], cells[Cell.WARM]
        base = private if warm < 0 else min(private, warm)
        cells[Cell.NEEDED] = max(cells[Cell.NEEDED], base + max(given_back, 0))

    @staticmethod
    def _private_at(cells: memoryview[int], rss_bytes: int) -> int:
        """Return private memory by the resident one: what is shared has stayed the same."""
        return max(rss_bytes - (cells[Cell.RSS] - cells[Cell.PRIVATE]), 0)

    def _start(self, number: int) -> int:
        return Header.WORDS + number * self._row_words


def _waits(mean: int, most: int) -> tuple[float, float] | None:
    return None if mean < 0 else (mean / NANOSECONDS, most / NANOSECONDS)


def _memory(cells: Sequence[int], now: int) -> WorkerMemory:
    pss, first, warm = cells[Cell.PSS], cells[Cell.FIRST], cells[Cell.WARM]
    return WorkerMemory(
        rss_bytes=cells[Cell.RSS],
        pss_bytes=None if pss < 0 else pss,
        private_bytes=cells[Cell.PRIVATE],
        first_bytes=None if first < 0 else first,
        warm_bytes=None if warm < 0 else warm,
        peak_bytes=cells[Cell.PEAK],
        served=cells[Cell.SAMPLED_AFTER],
        age_seconds=_seconds(now - cells[Cell.SAMPLED]),
        most_needed_bytes=cells[Cell.NEEDED],
    )


def _computed(slots: list[int]) -> int:
    """Return the nanoseconds that threads have computed for requests."""
    pairs = zip(slots[Slot.CPU :: Slot.WORDS], slots[Slot.CPU_BEFORE :: Slot.WORDS], strict=True)
    # One that begins has written the second before the first.
    return sum(max(now - before, 0) for now, before in pairs)


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / NANOSECONDS if nanoseconds > 0 else 0.0
