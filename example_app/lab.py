"""Three routes that cost something, each in its own way, so that sizing can be seen."""

from __future__ import annotations

import math
import os
import threading
import time

from flask import Blueprint, Response, abort, jsonify, make_response, render_template, request

from example_app.pages import plan_context, wants_html

MAX_SECONDS = 10
MAX_COMPUTE_MS = 5000
MAX_MEMORY_MB = 512

blueprint = Blueprint("lab", __name__, url_prefix="/lab")


@blueprint.get("/")
def index() -> str:
    """Explain the three routes and show the plan that the app runs under."""
    limits = {"seconds": MAX_SECONDS, "ms": MAX_COMPUTE_MS, "mb": MAX_MEMORY_MB}
    return render_template("lab.html", limits=limits, **plan_context())


@blueprint.get("/wait")
def wait() -> Response:
    """Wait, as for a database or another service; threads help here."""
    seconds = _number("seconds", default=0.5, upper=MAX_SECONDS)
    started = time.perf_counter()
    time.sleep(seconds)
    return _report("wait", started, {"seconds": seconds})


@blueprint.get("/compute")
def compute() -> Response:
    """Keep one CPU busy; more processes help here, more threads do not."""
    milliseconds = _number("ms", default=250, upper=MAX_COMPUTE_MS)
    started = time.perf_counter()
    end = time.thread_time() + milliseconds / 1000
    # Pure Python on purpose: it holds the interpreter's lock, as an app's own code does.
    while time.thread_time() < end:
        sum(n * n for n in range(1000))
    return _report("compute", started, {"ms": milliseconds})


@blueprint.get("/memory")
def memory() -> Response:
    """Hold memory for a while; the memory of a worker bounds the number of workers."""
    megabytes = _number("mb", default=50, upper=MAX_MEMORY_MB)
    seconds = _number("seconds", default=0.5, upper=MAX_SECONDS)
    started = time.perf_counter()
    try:
        # A page filled with something other than zeros is certainly resident.
        block = bytearray(b"\x01") * int(megabytes * 1024 * 1024)
    except MemoryError:
        abort(503, f"There is no room for another {megabytes:g} MB in this process.")
    time.sleep(seconds)
    del block
    return _report("memory", started, {"mb": megabytes, "seconds": seconds})


def _number(name: str, *, default: float, upper: float) -> float:
    try:
        value = float(request.args.get(name, default))
    except ValueError:
        value = math.nan
    if not 0 <= value <= upper:
        abort(400, f'"{name}" must be a number from 0 to {upper}, such as {name}={default}.')
    return value


def _report(route: str, started: float, asked: dict[str, float]) -> Response:
    facts = {
        "route": route,
        "asked": asked,
        "elapsed_ms": round((time.perf_counter() - started) * 1000, 1),
        "process_id": os.getpid(),
        "thread": threading.current_thread().name,
    }
    response = make_response(
        render_template("run.html", **facts) if wants_html() else jsonify(facts)
    )
    response.vary.add("Accept")
    response.cache_control.no_store = True
    return response
