"""What threads keep in glibc's arenas, with and without ``MALLOC_ARENA_MAX=2``.

``python -m tests.benchmarks.bench_arenas`` prints, for waitress with 16 threads: the memory of the
process when it is idle, the same after 16 clients have sent 30 requests each that take about 45 MB
and free it, and the requests a second.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from tests.servers.serving import Starter, serve_prod, starter

CLIENTS = 16
REQUESTS = 30
MB = 1024 * 1024

APP = """
import random

from flask import Flask
from flask_workersize import WorkerSizing

app = Flask("lms", instance_path=r"{folder}")
app.config["WORKERSIZE_BIND"] = "127.0.0.1:0"
WorkerSizing(app)


@app.get("/")
def take():
    # Larger than what Python keeps in pools of its own.
    parts = [bytes(random.randrange(600, 60_000)) for _ in range(1500)]
    return str(sum(map(len, parts)))
"""


def measure(start: Starter, **environ: str) -> tuple[float, float, float]:
    """Return the memory when idle and after the load, in MB, and the requests a second."""
    path = {"PYTHONPATH": str(start.folder)}
    command = serve_prod("--threads", str(CLIENTS), app="arenas_app")
    server = start(command, None, **path, **environ)
    server.get("/_health/capacity")
    process = psutil.Process(server.pid)
    idle = process.memory_info().rss / MB
    begun = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(server.get, ["/"] * CLIENTS * REQUESTS))
    seconds = time.monotonic() - begun
    assert {answer.status for answer in answers} == {200}
    time.sleep(1)
    after = process.memory_info().rss / MB
    server.stop()
    return idle, after, len(answers) / seconds


def main() -> None:
    """Measure each, three times in turn."""
    if sys.platform != "linux":
        sys.exit("glibc and its arenas are on Linux only.")
    with tempfile.TemporaryDirectory() as folder, starter(Path(folder)) as start:
        (start.folder / "arenas_app.py").write_text(APP.format(folder=folder), encoding="utf-8")
        print(f"{'':24} idle MB   after   requests/s")
        for environ in 3 * [{}, {"MALLOC_ARENA_MAX": "2"}]:
            idle, after, rate = measure(start, **environ)
            name = " ".join(f"{key}={value}" for key, value in environ.items()) or "as it is"
            print(f"{name:24}{idle:8.0f}{after:8.0f}{rate:13.0f}")


if __name__ == "__main__":
    main()
