"""Facts of one process: its memory, and when it started."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass

import psutil

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096

_CAP_SYS_NICE = 23
"""The bit of the right to raise priorities (capabilities(7))."""


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of a process; ``None`` if the system does not report it, or not to us."""

    rss_bytes: int
    """Resident memory; shared pages count in full."""

    pss_bytes: int | None = None
    """The same with each shared page divided by the number of processes that share it."""

    uss_bytes: int | None = None
    """Memory that is freed when the process ends; pages of files stay in the page cache."""

    mapped_bytes: int | None = None
    """Pages of files and of shared memory, each divided by the number of processes that map it."""


def may_set_nice(nice: int) -> bool:
    """Return whether this process may set that nice value, below 0 (setpriority(2)).

    Reading is safer than trying: a filter of system calls may kill a process that tries.
    """
    try:
        import resource

        with open("/proc/self/status", "rb") as file:
            capabilities = re.search(rb"^CapEff:\s*([0-9a-f]+)", file.read(), re.M)
        most = resource.getrlimit(resource.RLIMIT_NICE)[0]
    except (ImportError, AttributeError, OSError):
        # Not Linux, or no /proc.
        return hasattr(os, "geteuid") and os.geteuid() == 0
    has_right = capabilities is not None and int(capabilities[1], 16) >> _CAP_SYS_NICE & 1 == 1
    return has_right or most == resource.RLIM_INFINITY or most >= 20 - nice


def resident_memory(pid: int) -> int | None:
    """Return the resident memory of a process, in bytes; ``None`` if it is gone.

    Cheap: some microseconds. Shared pages count in full.
    """
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):
        return None


def held_memory(pid: int) -> int:
    """Return the memory of a process that no file stands behind, in bytes; 0 if it is gone.

    It is what the process takes from available memory: pages of files can be dropped. Cheap.
    Pages that its children share with it count here, and not there, where they are forked.
    """
    try:
        memory = psutil.Process(pid).memory_info()
    except (psutil.Error, OSError):
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


@dataclass(frozen=True)
class ResidentPeak:
    """Resident memory of a process now and at its peak, in bytes; shared pages count in full."""

    rss_bytes: int = 0
    most_bytes: int = 0
    """The most since it was forked."""

    file_bytes: int = 0
    """Pages of files in it now, which the kernel can drop: that is nothing given back."""

    swapped_bytes: int = 0
    """What was swapped out: it still holds that, too."""

    @property
    def given_back_bytes(self) -> int:
        """Memory it held at its peak and has given back; dropped pages of files count."""
        return self.most_bytes - self.rss_bytes - self.swapped_bytes


def peak_resident_memory(pid: int) -> ResidentPeak:
    """Return resident memory and its peak; zeros if it is gone, or the system does not report it.

    "VmRSS", "VmHWM", "RssFile" and "VmSwap" of proc_pid_status(5); some ten microseconds.
    """
    try:
        return resident_peak(_read(f"/proc/{pid}/status"))
    except OSError:
        return ResidentPeak()


def resident_peak(status: bytes) -> ResidentPeak:
    """Return resident memory from the text of "/proc/pid/status"."""
    found = dict(_PEAK.findall(status))
    return ResidentPeak(*(int(found.get(name, 0)) * 1024 for name in _PEAK_FIELDS))


_PEAK_FIELDS = (b"VmRSS", b"VmHWM", b"RssFile", b"VmSwap")
# The end of the line before is found faster than the beginning of one.
_PEAK = re.compile(rb"\n(Vm(?:RSS|HWM|Swap)|RssFile):\s+([0-9]+) kB")


def _read(path: str) -> bytes:
    """Return a small file of /proc at once: half the time of a file object."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, _MOST_READ)
    finally:
        os.close(file)


_MOST_READ = 64 * 1024


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, all its threads together; 0 if it is gone."""
    try:
        if sys.platform == "linux":
            # The clock that clock_getcpuclockid(3) names: to the nanosecond, and not to the tick.
            return time.clock_gettime((~pid << 3) | 2)
        used = psutil.Process(pid).cpu_times()
    except (psutil.Error, OSError):
        return 0.0
    return float(used.user + used.system)


def process_memory(pid: int) -> ProcessMemory | None:
    """Return the memory of a process; ``None`` if it is gone.

    Costly: the kernel walks all pages, some milliseconds for 200 MB (proc(5), "smaps_rollup").
    """
    if found := _rollup(pid):
        files = min(found["Private_Clean"], found["Rss"] - found["Anonymous"])
        private = sum(size for name, size in found.items() if name.startswith("Private_"))
        mapped = found["Pss_File"] + found["Pss_Shmem"] if "Pss_File" in found else None
        resident = resident_memory(pid) or found["Rss"]
        return ProcessMemory(resident, found["Pss"], private - files, mapped)
    try:
        full = psutil.Process(pid).memory_full_info()
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError):
        rss = resident_memory(pid)
        return None if rss is None else ProcessMemory(rss)
    return ProcessMemory(full.rss, getattr(full, "pss", None), full.uss)


def _rollup(pid: int) -> dict[str, int]:
    """Return the sums over all mappings of a process, in bytes; empty if they cannot be read.

    "Pss_File" and "Pss_Shmem" are among them since Linux 5.4.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            rows = re.findall(rb"^(\w+):\s+([0-9]+) kB$", file.read(), re.M)
    except OSError:
        return {}
    return {name.decode(): int(size) * 1024 for name, size in rows}


def private_memory(pid: int) -> int:
    """Return the memory that ending a process would free, in bytes; 0 if it is gone, or unknown."""
    memory = process_memory(pid)
    return (memory and memory.uss_bytes) or 0


def start_time(pid: int) -> int:
    """Return when a process started: with its id, it names the process for good; 0 if it is gone.

    Clock ticks since the boot (proc_pid_stat(5), "starttime") on Linux, elsewhere microseconds
    since 1970.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, which comes second, may hold blanks and brackets.
            return int(file.read().rpartition(b")")[2].split()[19])
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return 0
    except (OSError, ValueError, IndexError):
        pass
    try:
        return int(psutil.Process(pid).create_time() * 1_000_000)
    except (psutil.Error, OSError):
        return 0


def open_schedstat() -> int | None:
    """Open what the kernel knows of this thread's CPU time; ``None`` if the system has none.

    The descriptor stays that of this thread (proc(5), "/proc/thread-self").
    """
    try:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def waited_for_cpu(schedstat: int) -> int:
    """Return how many nanoseconds a thread has been ready to run, and had no CPU.

    Time in which its control group was throttled is a part of it; time that a hypervisor has stolen
    is not (Linux, Documentation/scheduler/sched-stats.rst, "time spent waiting on a runqueue").
    """
    try:
        return int(os.pread(schedstat, 64, 0).split()[1])
    except (OSError, IndexError, ValueError):
        return 0
