"""Run an app under gunicorn."""

from __future__ import annotations

import atexit
import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from ..deployment import Deployment
from ..errors import WorkerSizeConfigError
from ..extension import adopt, get_state
from ..plan import SizingPlan
from ..runtime.fork import after_fork
from ..settings import NAMES, SizingSettings
from ..sources import GUNICORN_ARGS, gunicorn_args, options_key, server_options
from . import WORKER_CLASSES, announce, say, systemd
from .handover import AppLocation, hand_over
from .listeners import open_listeners
from .proxy import TRUSTING_NOBODY, trusting


@contextmanager
def _without_broken_web_concurrency() -> Iterator[None]:
    """Hide a ``WEB_CONCURRENCY`` that is no number: gunicorn's import turns it into one."""
    value = os.environ.get("WEB_CONCURRENCY")
    if value is None or re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
        yield
        return
    del os.environ["WEB_CONCURRENCY"]
    try:
        yield
    finally:
        os.environ["WEB_CONCURRENCY"] = value


with _without_broken_web_concurrency():
    from gunicorn.app.base import BaseApplication
    from gunicorn.config import Config

    from .gunicorn_process import GracefulArbiter, SyncWorker, ThreadWorker

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from flask import Flask

_SHARED_MEMORY = "/dev/shm"

_NOT_HERE = {
    "chdir": "change the folder before you start flask",
    "check_config": "use flask serve-prod --dry-run",
    "config": "set app.config WORKERSIZE_GUNICORN_OPTIONS instead",
    "daemon": "let a service manager run it",
    "paste": "this is a Flask app",
    "print_config": "use flask serve-prod --dry-run",
    "pythonpath": "set PYTHONPATH",
    "reuse_port": "all workers share one listener",
    "spew": "use a debugger",
}
"""Options that gunicorn's own command acts on, and what to do under ours."""


class _Application(BaseApplication):
    """gunicorn's seam for a server of one's own ("Custom Application" in its docs).

    :param load: returns the WSGI app; called before the fork with preload, else in each worker
    :param options: gunicorn's settings
    """

    def __init__(self, load: Callable[[], WSGIApplication], options: Mapping[str, Any]) -> None:
        self._load = load
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._load()

    def run(self) -> None:
        GracefulArbiter(self).run()


def run(
    app: Flask, settings: SizingSettings, plan: SizingPlan, location: AppLocation | None
) -> None:
    """Serve until gunicorn has stopped.

    :param app: the app, which is served as it is with ``settings.preload``
    :param location: where a worker finds the app without preload
    :raises WorkerSizeConfigError: if an option of gunicorn is not valid
    :raises WorkerSizeStartError: if an address cannot be had
    :raises SystemExit: when gunicorn has stopped: 0, or its own status where it failed
    """
    options = gunicorn_options(app.config, os.environ, settings, plan)
    plan = replace(plan, worker_class=options["worker_class"])
    deployment = Deployment(settings, get_state(app).resources, plan)
    adopt(app, deployment)
    if not settings.preload:
        hand_over(location, deployment, options)
    options["post_fork"] = _chain(lambda server, worker: after_fork(app), options.get("post_fork"))
    run_master(lambda: trusting(app, settings), options, settings, plan)


def run_master(
    load: Callable[[], WSGIApplication],
    options: dict[str, Any],
    settings: SizingSettings,
    plan: SizingPlan,
) -> None:
    """Open the addresses and be gunicorn's master.

    :param load: returns the WSGI app
    :param options: gunicorn's settings, from :func:`gunicorn_options`
    :raises WorkerSizeStartError: if an address cannot be had
    :raises SystemExit: when gunicorn has stopped
    """
    worker_class = ThreadWorker if options["worker_class"] == "gthread" else SyncWorker
    options = {**options, "worker_class": worker_class}
    if systemd.inherited_count():
        # gunicorn takes the sockets, and the other two variables away.
        os.environ.pop("LISTEN_FDNAMES", None)
    else:
        options["bind"] = _listen(settings.addresses, options)
    announce(plan)
    if os.path.exists("gunicorn.conf.py"):
        say(logging.INFO, CONF_FILE_NOTE)
    launcher = os.getpid()
    try:
        _Application(load, options).run()
    except SystemExit as stop:
        if os.getpid() != launcher:
            _leave_worker(stop.code)
        raise


def _listen(addresses: Iterable[str], options: Mapping[str, Any]) -> list[str]:
    """Open the addresses ourselves, for one line where that fails; gunicorn takes them over."""
    scratch = Config()
    for name in ("backlog", "umask", "user", "group"):
        if name in options:
            scratch.set(name, options[name])
    listeners = open_listeners(addresses, scratch.backlog)
    for listener in listeners:
        path = listener.getsockname()
        if isinstance(path, str):
            os.chmod(path, 0o777 & ~scratch.umask)
            os.chown(path, scratch.uid, scratch.gid)
    return [f"fd://{listener.detach()}" for listener in listeners]


CONF_FILE_NOTE = (
    "gunicorn.conf.py in this folder is not read: set app.config WORKERSIZE_GUNICORN_OPTIONS or "
    "GUNICORN_CMD_ARGS, or start gunicorn yourself with a file that begins with "
    "'from flask_workersize.gunicorn_conf import *'."
)


def gunicorn_options(
    config: Mapping[str, Any],
    environ: Mapping[str, str],
    settings: SizingSettings,
    plan: SizingPlan,
) -> dict[str, Any]:
    """Return gunicorn's settings: ours, over them the app's config, then ``GUNICORN_CMD_ARGS``.

    What a plan is made from is taken from the plan: it has read both already.

    :raises WorkerSizeConfigError: if there is no such option, or its value is not valid
    """
    options: dict[str, Any] = {
        "accesslog": "-",
        "errorlog": "-",
        "keepalive": 5,
        "control_socket_disable": True,
    }
    if os.access(_SHARED_MEMORY, os.W_OK):
        # Heartbeats on a disk can block, and a read-only container has no other such folder.
        options["worker_tmp_dir"] = _SHARED_MEMORY
    if settings.trusted_proxy:
        options |= TRUSTING_NOBODY
    for where, given in (
        (f"app.config {options_key('gunicorn')}", server_options(config, "gunicorn")),
        (GUNICORN_ARGS, _command_args(environ)),
    ):
        _check_options(where, given)
        options |= {name: value for name, value in given.items() if name not in _PLANNED}
    return options | {
        "workers": plan.workers,
        "threads": plan.threads,
        "worker_class": _worker_class(options.get("worker_class"), plan),
        "preload_app": settings.preload,
        "timeout": settings.timeout,
        "graceful_timeout": settings.graceful_timeout,
    }


_PLANNED = frozenset(
    names.server_option["gunicorn"] for names in NAMES.values() if "gunicorn" in names.server_option
)


def _command_args(environ: Mapping[str, str]) -> dict[str, Any]:
    """Parse ``GUNICORN_CMD_ARGS`` with gunicorn's own parser, refusing with one line."""
    parser = Config(prog=GUNICORN_ARGS).parser()
    parser.error = _refuse_args  # type: ignore[method-assign]
    known, unknown = parser.parse_known_args(shlex.split(environ.get(GUNICORN_ARGS, "")))
    if unknown:
        # The first word may be the value of an option that takes none.
        option = next((word for word in unknown if word.startswith("-")), "a word")
        option = option.partition("=")[0]
        raise WorkerSizeConfigError(
            f"{GUNICORN_ARGS} has {option!r}, which gunicorn does not know. Correct or remove it."
        )
    given = {name: value for name, value in vars(known).items() if value is not None}
    given.pop("args", None)
    planned = gunicorn_args(environ, NAMES)
    for name, names in NAMES.items():
        gunicorn_name = names.server_option.get("gunicorn", "")
        if gunicorn_name in given and planned.get(name) is None:
            raise WorkerSizeConfigError(
                f"{GUNICORN_ARGS} shortens {names.gunicorn_flags[-1]}: write it in full."
            )
    return given


def _refuse_args(message: str) -> NoReturn:
    # argparse writes "argument -x/--long: what is wrong", and what is wrong may quote the value.
    flag = re.match(r"argument ([-\w/]+)", message)
    what = f"the value of {flag[1]} is not one it takes" if flag else "an option is not clear"
    raise WorkerSizeConfigError(f"{GUNICORN_ARGS} cannot be read: {what}. Correct it.")


def _check_options(where: str, options: Mapping[str, Any]) -> None:
    scratch = Config()
    for name, value in options.items():
        if name not in scratch.settings:
            raise WorkerSizeConfigError(
                f"{where} has {name!r}, which gunicorn does not know. Correct or remove it."
            )
        if name in _NOT_HERE and value:
            raise WorkerSizeConfigError(
                f"{where} has {name!r}, which has no effect here: {_NOT_HERE[name]}."
            )
        try:
            scratch.set(name, value)
        except Exception:
            raise WorkerSizeConfigError(
                f"{where} has a value for {name!r} that gunicorn does not take. Correct or remove "
                "it."
            ) from None
    worker_class = options.get("worker_class", "sync")
    if worker_class not in WORKER_CLASSES:
        raise WorkerSizeConfigError(
            f"{where} sets a worker class that is neither sync nor gthread: the plan counts "
            "processes and threads, which such a worker uses otherwise. Remove it, or start "
            "gunicorn with its own command."
        )


def _worker_class(asked: str | None, plan: SizingPlan) -> str | None:
    """Return the class of the plan; a single thread may run in a gthread worker if asked for."""
    return "gthread" if WORKER_CLASSES.get(asked or "") == "gthread" else plan.worker_class


def _chain(
    ours: Callable[..., None], theirs: Callable[..., None] | str | None
) -> Callable[..., None]:
    """Run a hook of the user, which may be a dotted name, after ours, never instead of it."""
    if theirs is None:
        return ours
    scratch = Config()
    scratch.set("post_fork", theirs)

    def hook(server: Any, worker: Any) -> None:
        ours(server, worker)
        scratch.post_fork(server, worker)

    return hook


def _leave_worker(code: Any) -> NoReturn:
    """End a forked worker: its exit handlers run, what the launcher would clean up does not.

    A worker leaves by ``SystemExit``, which would unwind the launcher's frames in the worker too:
    Flask's command, its app context and whatever stands around :func:`serve`. What Python does at
    its own end is done here: it waits for threads, runs exit handlers and flushes.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
