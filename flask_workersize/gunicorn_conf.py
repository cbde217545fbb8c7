"""The same size for who starts gunicorn directly.

``gunicorn -c python:flask_workersize.gunicorn_conf app:app``

gunicorn reads this before it loads the app, so it knows the environment only: an app whose
``app.config`` asks for something else is served under this plan all the same, and says so in one
warning. What stands on gunicorn's own command line, or in ``GUNICORN_CMD_ARGS``, wins, as always
with gunicorn, and the plan follows it.

To add settings, start a file of your own with ``from flask_workersize.gunicorn_conf import *``; a
hook there that has the name of one of ours has to call it.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .app_state import compare
from .errors import WorkerSizeConfigError, WorkerSizeStartError
from .log import say
from .resources import Resources, detect_resources
from .resources.processes import held_memory
from .runtime.deployment import Deployed, Deployment, process
from .servers.gunicorn import hooks as installed
from .servers.gunicorn.hooks import Hooks
from .servers.gunicorn.options import WORKER_CLASSES, parse_command_args
from .servers.health_port import HealthPort
from .servers.proxy import TRUSTING_NOBODY, TrustedProxy
from .sizing.plan import available_for, compute_plan
from .sizing.settings import SizingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "accesslog",
    "bind",
    "child_exit",
    "control_socket_disable",
    "errorlog",
    "graceful_timeout",
    "keepalive",
    "on_exit",
    "on_starting",
    "post_fork",
    "post_worker_init",
    "pre_fork",
    "preload_app",
    "threads",
    "timeout",
    "when_ready",
    "worker_class",
    "worker_exit",
    "workers",
]

_FOLLOWED = ("workers", "threads", "timeout", "graceful_timeout")


def _decide(resources: Resources, held: int, options: Mapping[str, Any]) -> Deployment:
    """Plan, or end gunicorn with one line."""
    try:
        settings = SizingSettings.load(
            options={"wsgi_server": "gunicorn", **options},
            option_source="gunicorn --{option}",
            gunicorn_args=parse_command_args,
        ).with_profile()
    except WorkerSizeConfigError as error:
        error.show()
        sys.exit(error.exit_code)
    plan = compute_plan(settings, available_for(settings, resources, held))
    return Deployment(settings, resources, plan, held_bytes=held)


_decided = _decide(detect_resources(), held_memory(os.getpid()), {})
process.deployment = _decided

workers = _decided.plan.workers
threads = _decided.plan.threads
worker_class = _decided.plan.worker_class
bind = list(_decided.settings.addresses)
preload_app = _decided.settings.preload
timeout = _decided.settings.timeout
graceful_timeout = _decided.settings.graceful_timeout
keepalive = 5
accesslog = "-"
errorlog = "-"
control_socket_disable = True
if _decided.settings.trusted_proxy:
    # Our own middleware decides whom to trust, the same for both servers.
    globals().update(TRUSTING_NOBODY)
    __all__ += list(TRUSTING_NOBODY)


def on_starting(server: Any) -> None:
    """Let the plan follow what gunicorn was really told, say what was chosen, start the monitor."""
    decided = _follow(server.cfg)
    process.deployment, process.is_final = decided, True
    try:
        port = HealthPort(decided)
    except WorkerSizeStartError as error:
        error.show()
        sys.exit(error.exit_code)
    installed.hooks = hooks = Hooks(decided, port, server.cfg, is_ours=False)
    hooks.monitor.start()
    server.log.info("%s", decided.plan)
    port.announce()
    if decided.settings.drain_seconds:
        say(logging.WARNING, NO_DRAIN_WARNING)
    for warning in decided.plan.warnings:
        server.log.warning("%s", warning)
    for app in list(process.apps):
        compare(app, decided.plan)


def when_ready(server: Any) -> None:
    """Say in the scoreboard that the server serves."""
    _hooks().when_ready(server)


def pre_fork(server: Any, worker: Any) -> None:
    """Give a worker its row in the scoreboard."""
    _hooks().pre_fork(server, worker)


def post_fork(server: Any, worker: Any) -> None:
    """Give a worker connections of its own; only the first one repeats a warning."""
    _hooks().post_fork(server, worker)


def worker_exit(server: Any, worker: Any) -> None:
    """Say in the scoreboard that a worker ends by its own will."""
    _hooks().worker_exit(server, worker)


def child_exit(server: Any, worker: Any) -> None:
    """Take the row of a worker that has ended."""
    _hooks().child_exit(server, worker)


def on_exit(server: Any) -> None:
    """End the monitor with the server."""
    _hooks().on_exit(server)


def _hooks() -> Hooks:
    hooks = installed.hooks
    if hooks is None:
        raise RuntimeError(
            "A hook of flask_workersize.gunicorn_conf is called before its 'on_starting': perhaps "
            "your own file has an 'on_starting' that does not call it. Call it there."
        )
    return hooks


NO_DRAIN_WARNING = (
    "NOW_LMS_DRAIN_SECONDS has no effect on a gunicorn that was started directly: it stops in its "
    "own way. Use flask serve-prod."
)


def post_worker_init(worker: Any) -> None:
    """Tell each request which deployment serves it, believe only trusted proxies, and count."""
    decided = process.deployment or _decided
    if decided.settings.trusted_proxy:
        worker.wsgi = TrustedProxy(worker.wsgi, decided.settings.trusted_proxy)
    worker.wsgi = Deployed(worker.wsgi, decided)
    _hooks().post_worker_init(worker)


def _follow(cfg: Any) -> Deployment:
    """Plan again if gunicorn's command line asks for something else."""
    worker_class: Any = WORKER_CLASSES.get(cfg.worker_class_str)
    if worker_class is None:
        WorkerSizeConfigError(
            "gunicorn was started with a worker class that is neither sync nor gthread: the plan "
            "counts processes and threads, which such a worker uses otherwise. Remove it, or "
            "start gunicorn without flask_workersize.gunicorn_conf."
        ).show()
        sys.exit(2)
    decided = process.deployment or _decided
    told = {name: getattr(cfg, name) for name in _FOLLOWED}
    options = {
        name: value for name, value in told.items() if value != _planned_value(decided, name)
    }
    if "threads" in options:
        # gunicorn has read the workers above: they do not follow other threads any more.
        options["workers"] = cfg.workers
    if options:
        decided = _decide(decided.resources, decided.held_bytes, options)
    plan = replace(decided.plan, worker_class=worker_class)
    return replace(decided, plan=plan)


def _planned_value(decided: Deployment, name: str) -> Any:
    return getattr(decided.plan, name, None) or getattr(decided.settings, name)
