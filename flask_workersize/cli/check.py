"""``flask workersize check``: read files and print the findings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from flask import Flask

from ..app_state import get_state, prepare, smallest_pool
from ..doctor.engines import connections_of_a_worker
from ..errors import WorkerSizeConfigError, printable
from ..export.check.table import Finding
from ..export.check.workload import Facts
from ..servers.launch import gunicorn_args
from ..sizing.plan import counted
from ..sizing.settings import SizingSettings

_MOST_BYTES = 4 * 1024 * 1024
_NO_TEXT = "is not UTF-8 text. Pass manifests, units or balancer files."


def read_files(names: Iterable[str]) -> dict[str, str]:
    """Return the text of each file, by its name; ``-`` is standard input.

    :raises WorkerSizeConfigError: if one cannot be read
    """
    return {"<stdin>" if name == "-" else name: _text(name) for name in dict.fromkeys(names)}


def _text(name: str) -> str:
    shown = "Standard input" if name == "-" else name
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            problem = f"is larger than {_MOST_BYTES // 2**20} MB. Check it in parts."
        elif b"\0" in raw:
            problem = _NO_TEXT
        elif name == "-" and not raw.strip():
            # Not a note: what comes from a pipe that broke would pass.
            problem = "is empty: the command before the pipe printed nothing."
        else:
            return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        problem = _NO_TEXT
    except (OSError, ValueError, AttributeError) as error:
        # A path with a zero byte, or a closed standard input (None).
        unnamed = "it is closed" if name == "-" else "not a valid name"
        why = getattr(error, "strerror", None) or unnamed
        problem = f"cannot be read ({why}). Pass files, or - for standard input."
    raise WorkerSizeConfigError(f"{shown} {problem}")


def facts_of(app: Flask | None, db_connections: int | None) -> Facts:
    """Return what is known of an app beside its manifests; little, if there is none here."""
    if app is None:
        settings = SizingSettings.load(gunicorn_args=gunicorn_args).with_profile()
        return Facts(settings, db_connections=db_connections, gunicorn_args=gunicorn_args)
    settings, _ = prepare(app)
    return Facts(
        settings,
        app.config,
        get_state(app).held_bytes,
        connections_of_a_worker(app),
        db_connections,
        gunicorn_args,
        smallest_pool(app),
    )


def connections(text: str | None) -> int | None:
    """Return the number of ``--db-connections``."""
    if text is None:
        return None
    if text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text):
        return int(text)
    raise WorkerSizeConfigError("--db-connections is not a whole number of at least 1.")


def as_lines(findings: Sequence[Finding], files: int, has_app: bool = True) -> str:
    """Return the findings, one line each, and how many there are."""
    notes = sum(finding.is_note for finding in findings)
    found = counted(len(findings) - notes, "finding") if len(findings) > notes else "Nothing found"
    here = "" if has_app else ", without an app"
    last = f"{found}, {counted(notes, 'note')}; {counted(files, 'file')} checked{here}."
    return "\n".join([*(printable(str(finding)) for finding in findings), last])


def as_json(findings: Sequence[Finding]) -> str:
    """Return the same as a JSON list."""
    return json.dumps([finding._asdict() for finding in findings], indent=2)
