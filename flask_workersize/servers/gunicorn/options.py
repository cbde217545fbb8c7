"""gunicorn's settings: ours, those of the app and those of ``GUNICORN_CMD_ARGS``."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, Literal, NoReturn

from gunicorn.config import Config

from ...errors import WorkerSizeConfigError
from ...log import say
from ...sizing.plan import SizingPlan
from ...sizing.settings import NAMES, SizingSettings
from ...sizing.sources import GUNICORN_ARGS, options_key, server_options
from ..proxy import TRUSTING_NOBODY
from ..temporary import SHARED_MEMORY

WORKER_CLASSES: dict[str, Literal["sync", "gthread"]] = {
    "sync": "sync",
    "gthread": "gthread",
    "gunicorn.workers.sync.SyncWorker": "sync",
    "gunicorn.workers.gthread.ThreadWorker": "gthread",
}
"""gunicorn's worker classes that a plan can be made for, by each name they have there."""

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


_PLANNED = frozenset(
    names.server_option["gunicorn"] for names in NAMES.values() if names.gunicorn_flags
)
"""Options that feed the plan: they are taken from it."""


def planned_class(where: str, name: str) -> Literal["sync", "gthread"]:
    """Return the worker class of a plan by its name for gunicorn."""
    if name not in WORKER_CLASSES:
        raise WorkerSizeConfigError(
            f"{where} sets a worker class other than sync or gthread, which cannot be planned. "
            "Remove it, or start gunicorn without flask-workersize."
        )
    return WORKER_CLASSES[name]


def own_options(settings: SizingSettings, plan: SizingPlan) -> dict[str, Any]:
    """Return the settings that gunicorn gets from us, however it is started."""
    options = {
        "accesslog": "-",
        "errorlog": "-",
        "keepalive": 5,
        "control_socket_disable": True,
        "workers": plan.workers,
        "threads": plan.threads,
        "worker_class": plan.worker_class,
        "preload_app": settings.preload,
        "timeout": settings.timeout,
        "graceful_timeout": settings.graceful_timeout,
    }
    return options | TRUSTING_NOBODY if settings.trusted_proxy else options


def gunicorn_options(
    config: Mapping[str, Any], settings: SizingSettings, plan: SizingPlan
) -> dict[str, Any]:
    """Return gunicorn's settings: ours, over them the app's config, then ``GUNICORN_CMD_ARGS``."""
    options = own_options(settings, plan)
    if os.access(SHARED_MEMORY, os.W_OK):
        # Heartbeats on a disk can block, and a read-only container has no other such folder.
        options["worker_tmp_dir"] = SHARED_MEMORY
    for where, given in (
        (f"app.config {options_key('gunicorn')}", server_options(config, "gunicorn")),
        (GUNICORN_ARGS, settings.gunicorn_args),
    ):
        others = {name: value for name, value in given.items() if name not in _PLANNED}
        _check_options(where, others)
        options |= others
    # A single thread may run in a gthread worker if that is set; several need one.
    is_threaded = WORKER_CLASSES[options["worker_class"]] == "gthread"
    return options | {"worker_class": "gthread" if is_threaded else plan.worker_class}


def warn_of_hup(cfg: Any) -> None:
    """Log what HUP cannot do while the app is loaded before the fork."""
    if cfg.preload_app:
        say(
            logging.WARNING,
            "HUP starts new workers with the code that is already loaded. To load new "
            "code, restart, or set NOW_LMS_PRELOAD=off.",
        )


def warn_of_reload(cfg: Any) -> None:
    """Log what ``--reload`` cannot do while the app is loaded before the fork."""
    if cfg.preload_app and cfg.reload:
        say(
            logging.WARNING,
            "reload starts new workers with the code that is already loaded. To load new "
            "code, set NOW_LMS_PRELOAD=off.",
        )


def parse_command_args(text: str) -> dict[str, Any]:
    """Parse ``GUNICORN_CMD_ARGS`` with gunicorn's own parser, refusing with one line."""
    config = Config(prog=GUNICORN_ARGS)
    for name in _PLANNED:
        # Our own rules refuse a wrong value with more help.
        config.settings[name].type = str  # type: ignore[misc]
    parser = config.parser()
    parser.error = _refuse_args  # type: ignore[method-assign]
    parser.exit = _refuse_text  # type: ignore[method-assign]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise WorkerSizeConfigError(f"{GUNICORN_ARGS} cannot be read: {error}.") from None
    with redirect_stdout(StringIO()):
        known, unknown = parser.parse_known_args(words)
    if unknown:
        # The first word may be the value of an option that takes none.
        option = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
        # A word that does not look like an option may be a secret.
        shown = repr(option) if re.fullmatch("--?[a-z-]+", option) else "an option"
        raise WorkerSizeConfigError(f"{GUNICORN_ARGS} has {shown}, which gunicorn does not know.")
    given = {name: value for name, value in vars(known).items() if value is not None}
    if given.pop("args", None):
        raise WorkerSizeConfigError(f"{GUNICORN_ARGS} has a word that is not an option: remove it.")
    return given


def _refuse_args(message: str) -> NoReturn:
    # argparse writes "argument -x/--long: what is wrong", and what is wrong may quote the value.
    flag = re.match(r"argument ([-\w/]+)", message)
    what = f"{flag[1]} has no value, or a wrong one" if flag else "an option is ambiguous"
    raise WorkerSizeConfigError(f"{GUNICORN_ARGS} cannot be read: {what}.")


def _refuse_text(status: int = 0, message: str | None = None) -> NoReturn:
    # argparse ends the process after these, which it also takes shortened or run together.
    raise WorkerSizeConfigError(f"{GUNICORN_ARGS} has -h, --help, -v or --version: remove it.")


def _check_options(where: str, options: Mapping[str, Any]) -> None:
    scratch = Config()
    for name, value in options.items():
        if name not in scratch.settings:
            raise WorkerSizeConfigError(f"{where} has {name!r}, which gunicorn does not know.")
        if name in _NOT_HERE and value:
            raise WorkerSizeConfigError(f"{where}: {name!r} has no effect; {_NOT_HERE[name]}.")
        try:
            scratch.set(name, value)
            if name == "raw_env":
                scratch.env  # noqa: B018 - it is parsed when it is read
        except Exception:
            raise WorkerSizeConfigError(f"{where} has a wrong value for {name!r}.") from None
    planned_class(where, options.get("worker_class", "sync"))
