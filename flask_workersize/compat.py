"""A drop-in for ``now_lms.worker_config``: the same two functions, with the same behaviour.

They never raise, and they read only the machine's CPUs and memory. In a container, use
:func:`flask_workersize.detect_resources` and :func:`flask_workersize.compute_plan`.
"""

from __future__ import annotations

import os

import psutil

from .log import logger
from .sizing.settings import DEFAULT_WORKER_MEMORY_MB, NAMES


def calculate_optimal_workers(
    worker_memory_mb: int = DEFAULT_WORKER_MEMORY_MB,
    min_workers: int = 1,
    max_workers: int | None = None,
    threads: int = 1,
) -> int:
    """Calculate the number of workers from the machine's CPUs and available memory.

    The formula is the guide's ("Automatic Worker/Thread Calculation"); if memory cannot be
    read, only the CPU bound counts.

    :param worker_memory_mb: memory that one worker needs, in MB
    :param min_workers: fewest workers
    :param max_workers: most workers; ``None`` for no upper bound. It wins over ``min_workers``
    :param threads: threads a worker
    :returns: the number of workers
    """
    workers = (os.cpu_count() or 1) * 2 + 1
    try:
        available_mb = psutil.virtual_memory().available / (1024 * 1024)
        workers = min(workers, int(available_mb / worker_memory_mb))
    except Exception as error:
        logger.warning("Calculating without memory: %s.", type(error).__name__)
    if threads > 1:
        workers //= threads
    workers = max(min_workers, workers)
    return workers if max_workers is None else min(workers, max_workers)


def get_worker_config_from_env() -> tuple[int, int]:
    """Return workers and threads for gunicorn, from the environment or calculated.

    A value that is not a number is ignored with a warning, and so are workers below 1; threads
    below 1 become 1.

    :returns: ``(workers, threads)``
    """
    threads = max(1, _number("threads") or 1)
    workers = _number("workers")
    if workers is not None and workers < 1:
        logger.warning("Ignoring a number of workers below 1, calculating it instead.")
        workers = None
    if workers is None:
        memory_mb = _number("worker_memory_mb")
        workers = calculate_optimal_workers(
            DEFAULT_WORKER_MEMORY_MB if memory_mb is None else memory_mb, threads=threads
        )
    return workers, threads


def _number(name: str) -> int | None:
    """Return the first number that is set for a setting; empty is not set."""
    given = [item for item in NAMES[name].variables if os.environ.get(item, "").strip()]
    if not given or os.environ[given[0]].strip().lower() == "auto":
        return None
    try:
        return int(os.environ[given[0]])
    except ValueError:
        logger.warning("Ignoring %s: not a whole number.", given[0])
        return None
