"""The example app: its pages, its lab, and a database filled once by many starters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

pytest.importorskip("flask_sqlalchemy", reason="the example app needs Flask-SQLAlchemy")

from sqlalchemy import func, inspect, select

import example_app.pages
from example_app import create_app
from example_app.models import Course, Lesson, db
from example_app.storage import DatabaseUnavailableError
from flask_workersize import WorkerSizeConfigError

PROJECT = Path(__file__).resolve().parents[1]
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
STARTERS = 8
# Each starter says that it is ready and waits for a line, so that all begin together.
STARTER = """
import sys
from example_app import create_app
print("ready", flush=True)
sys.stdin.readline()
create_app()
"""


def uri(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = create_app({"SQLALCHEMY_DATABASE_URI": uri(tmp_path / "lms.sqlite3"), "TESTING": True})
    yield app
    close(app)


def close(app: Flask) -> None:
    """Close the connections of an app: Python 3.13 warns of those that are merely forgotten."""
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def counts(app: Flask) -> tuple[int, int, int]:
    """Return the number of courses, of different courses, and of lessons."""
    with app.app_context():
        row = db.session.execute(
            select(
                func.count(Course.id),
                func.count(Course.slug.distinct()),
                select(func.count(Lesson.id)).scalar_subquery(),
            )
        ).one()
        db.session.remove()
        db.engine.dispose()
    return row[0], row[1], row[2]


class Links(HTMLParser):
    """Collect what a page links to and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value for name, value in attrs if name in ("href", "src", "action") and value
        ]


def test_home_lists_every_course_and_links_it(app: Flask, client: FlaskClient) -> None:
    page = client.get("/").text
    with app.app_context():
        courses = db.session.scalars(select(Course)).all()
    assert len(courses) >= 3
    for course in courses:
        assert course.title in page
        assert f'href="/courses/{course.slug}"' in page


def test_course_page_lists_its_lessons_in_order(app: Flask, client: FlaskClient) -> None:
    page = client.get("/courses/serving-python").text
    with app.app_context():
        course = db.session.scalars(select(Course).filter_by(slug="serving-python")).one()
        titles = [lesson.title for lesson in course.lessons]
    places = [page.index(title) for title in titles]
    assert places == sorted(places)


def test_lesson_page_shows_its_text_and_leads_to_its_neighbours(client: FlaskClient) -> None:
    page = client.get("/courses/serving-python/3").text
    assert "How many workers?" in page
    assert "A common starting point" in page
    assert 'rel="prev" href="/courses/serving-python/2"' in page
    assert 'rel="next" href="/courses/serving-python/4"' in page


@pytest.mark.parametrize(
    "path", ["/nowhere", "/courses/none", "/courses/none/1", "/courses/serving-python/99"]
)
def test_what_does_not_exist_is_404(client: FlaskClient, path: str) -> None:
    assert client.get(path, headers=BROWSER).status_code == 404


def test_every_internal_link_answers_200(client: FlaskClient) -> None:
    seen: set[str] = set()
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        # Static files stay open until their response is closed.
        with client.get(path, headers=BROWSER) as response:
            assert response.status_code == 200, path
            links = Links()
            if response.mimetype == "text/html":
                links.feed(response.get_data(as_text=True))
        for link in [urljoin(path, link) for link in links.found if not link.startswith("#")]:
            assert not urlsplit(link).netloc, f"{path} leads outside: {link}"
            if link not in seen and link not in waiting:
                waiting.append(link)
    assert {"/", "/lab/", "/_health/capacity", "/courses/serving-python/1"} <= seen


@pytest.mark.parametrize(
    "path", ["/lab/wait?seconds=0", "/lab/compute?ms=1", "/lab/memory?mb=1&seconds=0"]
)
def test_lab_says_who_answered(client: FlaskClient, path: str) -> None:
    facts = client.get(path).get_json()
    assert facts["process_id"] == os.getpid()
    assert facts["thread"] == "MainThread"
    assert facts["elapsed_ms"] >= 0
    page = client.get(path, headers=BROWSER)
    assert page.mimetype == "text/html"
    assert str(os.getpid()) in page.text


@pytest.mark.parametrize(
    ("path", "name", "upper"),
    [
        ("/lab/wait?seconds=soon", "seconds", "10"),
        ("/lab/wait?seconds=", "seconds", "10"),
        ("/lab/wait?seconds=-1", "seconds", "10"),
        ("/lab/wait?seconds=nan", "seconds", "10"),
        ("/lab/wait?seconds=10.1", "seconds", "10"),
        ("/lab/compute?ms=5001", "ms", "5000"),
        ("/lab/compute?ms=inf", "ms", "5000"),
        ("/lab/memory?mb=513", "mb", "512"),
        ("/lab/memory?mb=1&seconds=11", "seconds", "10"),
    ],
)
def test_bad_parameter_is_400_with_one_line(
    client: FlaskClient, path: str, name: str, upper: str
) -> None:
    response = client.get(path)
    assert response.status_code == 400
    assert response.text.count("\n") == 1
    assert response.text.startswith(f'"{name}" must be a number from 0 to {upper}')


def test_error_keeps_the_headers_that_belong_to_it(client: FlaskClient) -> None:
    response = client.post("/")
    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]


@pytest.mark.parametrize("path", ["/", "/lab/"])
def test_pages_show_the_plan_and_link_the_health_route(client: FlaskClient, path: str) -> None:
    page = client.get(path).text
    assert "Requests at once" in page
    assert 'href="/_health/capacity"' in page


def test_health_link_follows_the_setting_and_none_hides_it(app: Flask) -> None:
    app.config["WORKERSIZE_HEALTH_URL"] = "/elsewhere"
    assert 'href="/elsewhere"' in app.test_client().get("/").text
    app.config["WORKERSIZE_HEALTH_URL"] = None
    assert "See what is happening now" not in app.test_client().get("/").text


def test_wrong_settings_are_shown_instead_of_the_plan(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(app: Flask) -> None:
        raise WorkerSizeConfigError('"NOW_LMS_THREADS" must be 1 or more')

    monkeypatch.setattr(example_app.pages, "get_plan", refuse)
    page = client.get("/")
    assert page.status_code == 200
    assert "NOW_LMS_THREADS" in page.text
    assert "Requests at once" not in page.text


def test_second_start_keeps_the_courses_as_they_are(tmp_path: Path) -> None:
    config = {"SQLALCHEMY_DATABASE_URI": uri(tmp_path / "lms.sqlite3")}
    assert counts(create_app(config)) == counts(create_app(config))


def test_many_processes_starting_at_once_fill_the_database_once(app: Flask, tmp_path: Path) -> None:
    database = tmp_path / "shared" / "lms.sqlite3"
    database.parent.mkdir()
    environ = os.environ | {"EXAMPLE_DATABASE_URI": uri(database)}
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER],
            cwd=PROJECT,
            env=environ,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(STARTERS)
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n", starter.communicate()[1]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("go\n")
        starter.stdin.flush()
    for starter in starters:
        errors = starter.communicate(timeout=60)[1]
        assert starter.returncode == 0, errors
    assert counts(create_app({"SQLALCHEMY_DATABASE_URI": uri(database)})) == counts(app)


def test_failed_start_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"SQLALCHEMY_DATABASE_URI": uri(tmp_path / "lms.sqlite3")}

    def fail(*args: object) -> None:
        raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("example_app.storage._add_courses", fail)
        with pytest.raises(RuntimeError, match="interrupted"):
            create_app(config)
    assert counts(create_app(config))[0] >= 3


def test_no_connection_is_open_after_create_app(app: Flask) -> None:
    with app.app_context():
        assert "Connections in pool: 0" in db.engine.pool.status()
        assert inspect(db.engine).has_table("course")


@pytest.mark.parametrize(
    "value",
    ["sqlite://", "sqlite:///:memory:", "postgresql://name:secret@localhost/lms", "not a url"],
)
def test_database_that_processes_cannot_share_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(DatabaseUnavailableError) as caught:
        create_app({"SQLALCHEMY_DATABASE_URI": value})
    assert "EXAMPLE_DATABASE_URI" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "start",
    [
        ["-m", "flask", "--app", "example_app", "routes"],
        ["-m", "example_app.run"],
        ["example_app/run.py"],
    ],
)
def test_unusable_database_is_one_line_and_no_traceback(start: list[str], tmp_path: Path) -> None:
    """Whichever way the app is started, the line names the file, the cause and the remedy."""
    database = tmp_path / "missing" / "lms.sqlite3"
    done = subprocess.run(
        [sys.executable, *start],
        check=False,
        cwd=PROJECT,
        env=os.environ | {"EXAMPLE_DATABASE_URI": uri(database)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(database) in done.stderr
    assert "Set" in done.stderr or "set" in done.stderr


def test_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be looked at " * 40)
    with pytest.raises(DatabaseUnavailableError, match="not a database"):
        create_app({"SQLALCHEMY_DATABASE_URI": uri(path)})


def test_read_only_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "lms.sqlite3"
    path.touch()
    with pytest.raises(DatabaseUnavailableError, match="readonly database"):
        create_app({"SQLALCHEMY_DATABASE_URI": f"sqlite:///file:{path}?mode=ro&uri=true"})
