"""Forbid system calls to a process, as ``SystemCallFilter=`` of systemd does."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

NUMBERS = {
    "x86_64": {"setpriority": (141,), "chown": (92, 93, 94, 260)},
    "aarch64": {"setpriority": (140,), "chown": (54, 55)},
}.get(platform.machine(), {})
"""What the calls are called, and all numbers that they have on this machine."""

CAN_FORBID = sys.platform == "linux" and bool(NUMBERS)

_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_KILL, _ALLOW = 0x80000000, 0x7FFF0000


def forbid(*names: str) -> None:
    """Have this process, and all that come from it, killed by SIGSYS for these calls.

    seccomp(2): a program in classic BPF sees the number of the call first.
    """
    numbers = [number for name in names for number in NUMBERS[name]]
    steps = [(0x20, 0, 0, 0)]  # load the number
    steps += [(0x15, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    steps += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _KILL)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *s) for s in steps))
    header = ctypes.create_string_buffer(
        struct.pack("HL", len(steps), ctypes.addressof(program)),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(header), 0, 0),
    ):
        if libc.prctl(*map(ctypes.c_ulong, arguments)):
            raise OSError(ctypes.get_errno(), "prctl")


def forbidding(names: str, command: Sequence[str]) -> list[str]:
    """Return a command line that runs another one under such a filter."""
    return [sys.executable, "-P", str(Path(__file__)), names, *command]


if __name__ == "__main__":
    forbid(*sys.argv[1].split(","))
    os.execv(sys.argv[2], sys.argv[2:])
