"""On a real machine with control groups v2 and systemd, emulated: on demand, ``pytest -m vm``.

It needs root on Debian 12 or a machine whose apt knows it, and::

    apt-get install -y --no-install-recommends qemu-system-x86 debootstrap e2fsprogs cpio kmod

``tests/vm/machine`` boots it; the first time it makes an image, which takes about two minutes.
Nothing of it has a network. Emulated, Python is about ten times slower: this shows what happens,
never how fast.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm

PROJECT = Path(__file__).parents[2]
MACHINE = Path(__file__).with_name("machine")
LIMIT_SECONDS = 1500
SYSTEM_PYTHON = "/usr/bin/python3.11"
"""The Python that the machine has, too; the environment is made with it here."""


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """Make the disk that the machine gets: the project, and an environment for it."""
    if os.geteuid() != 0 or not all(map(shutil.which, ["qemu-system-x86_64", "debootstrap"])):
        pytest.skip("root, qemu-system-x86_64 and debootstrap are needed")
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"no {SYSTEM_PYTHON}, the version of the machine")
    with tempfile.TemporaryDirectory(prefix="workersize-vm-") as name:
        folder = Path(name)
        kept = (
            "flask_workersize",
            "tests",
            "example_app",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        )
        for item in kept:
            source = PROJECT / item
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / item)
        subprocess.run([SYSTEM_PYTHON, "-m", "venv", str(folder / "venv")], check=True)
        pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "-q", f"{PROJECT}[test]"]
        subprocess.run(pip, check=True)
        yield folder


def run_in_machine(disk: Path, *tests: str) -> None:
    """Run tests there, one after the other, and show what pytest says."""
    job = disk / "job"
    python = "/mnt/dir/venv/bin/python -B -m pytest -q -p no:cacheprovider -n0 -m ''"
    job.write_text(f"cd /mnt/dir && exec {python} -rs --durations=5 {' '.join(tests)}\n")
    options = ["-m", "2048", "-c", "2", "-t", str(LIMIT_SECONDS)]
    command = [str(MACHINE), "run", *options, str(disk), "job"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]


def test_limits_and_memory_of_groups_v2(disk: Path) -> None:
    run_in_machine(
        disk,
        "tests/resources/test_real_groups.py",
        "tests/servers/test_memory_guard.py",
        "tests/servers/test_memory_holders.py",
        "tests/servers/test_memory_high.py",
    )


def test_stopping(disk: Path) -> None:
    run_in_machine(
        disk,
        "tests/servers/test_stop_parts.py",
        "tests/servers/test_systemd.py",
        "tests/servers/test_stopping.py -k 'loses_nothing or queued'",
    )


def test_units(disk: Path) -> None:
    run_in_machine(disk, "tests/vm/units.py")
