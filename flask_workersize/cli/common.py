"""What all commands share: options, and how their process ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from flask import Flask
from flask.cli import ScriptInfo

from ..app_state import EXTENSION_KEY
from ..errors import WorkerSizeConfigError
from ..servers.ending import process_end

F = TypeVar("F", bound=Callable[..., Any])


def load_app(info: ScriptInfo) -> Flask:
    """Return the app that a command is for.

    :raises WorkerSizeConfigError: if it is not registered with the extension
    """
    app = info.load_app()
    if EXTENSION_KEY not in app.extensions:
        raise WorkerSizeConfigError(
            "This app is not registered with WorkerSizing: perhaps init_app was not called, or for "
            "another app. Call WorkerSizing(app) where the app is created."
        )
    return app


server_option = partial(
    click.option, metavar="[waitress|gunicorn]", help="Server to run.  [default: waitress]"
)


def sizing_options(command: F) -> F:
    """Add the options that a plan is made from, beside the server."""
    for add in (
        click.option(
            "--worker-memory-mb",
            metavar="MB",
            help="Memory that one worker needs, in MB.  [default: 200]",
        ),
        click.option(
            "--threads",
            metavar="NUMBER",
            help="Threads per worker.  [default: 1 for gunicorn, calculated for waitress]",
        ),
        click.option(
            "--workers", metavar="NUMBER", help="Worker processes.  [default: calculated]"
        ),
    ):
        command = add(command)
    return command


def option_names() -> dict[str, str]:
    """Return how each option is called in messages: click can have taken it from a variable."""
    context = click.get_current_context()
    names = {}
    for param in context.command.params:
        if param.name and param.opts:
            names[param.name] = param.opts[0]
            if context.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT:
                names[param.name] = f"{context.auto_envvar_prefix}_{param.name.upper()}"
    return names


class Ends(click.Command):
    """A command whose process ends after it, whatever threads of the app run on.

    Not if it was handed a loaded app: then the process is another's, such as a test's.
    """

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first sentence of the help; the list of commands wraps it, and cuts nothing.

        :param limit: what click would cut it to
        """
        return super().get_short_help_str(sys.maxsize)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the options; help and a wrong option end the command here."""
        try:
            return super().make_context(*args, **extra)
        except BaseException:
            with _end_after(extra.get("parent")):
                raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _end_after(ctx):
            return super().invoke(ctx)


class Group(Ends, click.Group):
    """A group of such commands."""

    command_class = Ends


def _end_after(ctx: click.Context | None) -> AbstractContextManager[None]:
    info = ctx.find_object(ScriptInfo) if ctx else None
    if ctx is None or info is None:
        return nullcontext()
    group = ctx.find_root().command
    # A program's own FlaskGroup makes the app, too.
    is_made_here = info.create_app in (None, getattr(group, "create_app", None))
    return process_end.bounded() if is_made_here else nullcontext()
