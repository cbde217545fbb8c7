"""The quickstart: its files served by its commands, and the outputs that it shows."""

from __future__ import annotations

import sys

import pytest

from tests.servers.serving import Server, Starter, clean_environ
from tests.sessions import (
    ANY,
    ROOT,
    Session,
    files,
    is_shown,
    printed,
    sessions,
    without_figures,
)

pytest.importorskip("flask_sqlalchemy", reason="one of its apps needs Flask-SQLAlchemy")

PAGE = (ROOT / "docs" / "quickstart.rst").read_text(encoding="utf-8")
LABEL = ".. _quickstart-"
INSTALLING = {"python3", "source", "pip"}
"""Commands that need an index or change the shell; the tests have an environment."""

ABOUT_THE_MACHINE = ("serve-prod", "python")
"""Commands whose outputs are those of the machine of the docs, to the letter."""


def examples() -> list[list[Session]]:
    """Return what is typed for each example; two more sections are about the second one."""
    sections = {
        section.partition(":")[0]: [
            session for session in sessions(section) if session.words[0] not in INSTALLING
        ]
        for section in PAGE.split(LABEL)[1:]
    }
    assert list(sections) == ["app", "factory", "run-py", "mounted", "check"]
    of_the_shop = [*sections["factory"], *sections["run-py"], *sections["check"]]
    return [sections["app"], of_the_shop, sections["mounted"]]


EXAMPLES = pytest.mark.parametrize("example", examples(), ids=["app", "factory", "mounted"])


@EXAMPLES
def test_plans_that_are_shown_are_those_of_the_code(example: list[Session]) -> None:
    """On the machine of the docs; what gunicorn logs after it is held by the test below."""
    planning = [item for item in example if set(item.words) & {*ABOUT_THE_MACHINE}]
    assert planning
    for session in planning:
        plan_line = session.shown.partition("\n")[0]
        shown = plan_line if "gunicorn" in plan_line else session.shown
        assert is_shown(shown, printed(session)), session


def test_measurement_that_is_shown_is_that_of_another_app() -> None:
    (session,) = [item for item in examples()[1] if "measure" in item.words]
    expected = printed(session).replace("example_app", session.words[2])
    assert is_shown(without_figures(session.shown), without_figures(expected))


@pytest.mark.slow
@EXAMPLES
def test_what_is_typed_does_what_is_shown(example: list[Session], start: Starter) -> None:
    """For real, but with a free port on loopback; only figures differ from machine to machine."""
    for name, text in files(PAGE).items():
        path = start.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    server = None
    for session in example:
        if "measure" in session.words:
            continue  # takes long; tests/measure measures apps like these
        if session.words[0] == "curl":
            assert server is not None, session
            expect(session, answer(session, server))
        elif session.is_server:
            server = replaced(server, started(session, start))
            expect(session, server.stderr)
        else:
            expect(session, finished(session, start))
    assert server is not None
    assert server.stop() == 0


def expect(session: Session, text: str) -> None:
    assert not session.shown or is_shown(without_figures(session.shown), without_figures(text)), (
        f"{session}\n{text}"
    )


def started(session: Session, start: Starter) -> Server:
    server = start(command(session), None, **environ(session))
    server.get("/")
    return server


def replaced(old: Server | None, new: Server) -> Server:
    if old is not None:
        assert old.stop() == 0
    return new


def finished(session: Session, start: Starter) -> str:
    done = start.run(command(session), None, **environ(session))
    assert done.status == 0, done.stderr
    return done.stdout


def answer(session: Session, server: Server) -> str:
    (address,) = session.words[1:]
    port, _, path = address.partition("/")
    assert port == f"localhost:{ANY.rpartition(':')[2]}"
    return server.get(f"/{path}").body.decode()


def command(session: Session) -> list[str]:
    program, *arguments = session.words
    return [sys.executable, *({"flask": ["-m", "flask"], "python": []}[program]), *arguments]


def environ(session: Session) -> dict[str, str]:
    """Return the variables of a command; a server gets a port that is free."""
    here = {"NOW_LMS_HOST": "127.0.0.1", "NOW_LMS_PORT": "0"} if session.is_server else {}
    path = f"{ROOT}:{clean_environ({})['PYTHONPATH']}"
    return {**session.environ, **here, "PYTHONPATH": path}
