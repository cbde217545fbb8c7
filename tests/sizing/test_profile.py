"""The sizing profile: what is read, what is refused, what is warned of, and how it is written."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_workersize import SizingSettings, WorkerSizeConfigError, WorkerSizing, compute_plan
from flask_workersize.cli.format import explain
from flask_workersize.sizing.profile import Estimate, SizingProfile
from flask_workersize.sizing.profile_location import (
    FILE_NAME,
    ProfileLocation,
    doubts_of,
    find_profile,
)
from tests.plain import (
    SECRET,
    check_line,
    load,
    make_endless,
    new_app,
    refused,
    resources,
    untimed,
)
from tests.sizing.profiles import facts, figure, numbers, profile

VARIABLE = "NOW_LMS_SIZING_PROFILE"

ANYTHING = st.one_of(
    st.text(max_size=12),
    st.floats(),
    st.integers(-(10**20), 10**20),
    st.booleans(),
    st.none(),
    st.builds(
        "{}-12-31T{}:59:59{}".format,
        st.sampled_from(["0000", "0001", "2026", "9999", "10000"]),
        st.sampled_from(["00", "23", "24"]),
        st.sampled_from(["Z", "+23:59", "-23:59", ".9999999Z", ""]),
    ),
    st.sampled_from(["3.9", "3.9\n", "3.\x1b[2J", "3.9\u202e", "gunicorn 9", "\x85", "\ud800"]),
)
"""What may stand for a value in a file."""


@pytest.fixture
def profile_location(tmp_path: Path) -> ProfileLocation:
    """Return the home of an app called lms, with an instance folder that is there."""
    return ProfileLocation("lms", str(tmp_path))


def put(profile_location: ProfileLocation, **others: Any) -> Path:
    """Write a profile into the instance folder."""
    profile_location.path.write_text(json.dumps(facts(**others)))
    return profile_location.path


# The file


def test_profile_that_is_written_is_read_again_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "profile.json"
    written = profile()
    written.save(path)
    assert SizingProfile.load(path) == written
    assert json.loads(path.read_text())["schema"] == 1
    assert [item.name for item in path.parent.iterdir()] == ["profile.json"]


def test_profile_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profile.json"
    profile(app="old").save(path)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        profile(app="new").save(path)
    assert SizingProfile.load(path).app == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["profile.json"]


def test_others_may_read_what_root_has_written(tmp_path: Path) -> None:
    """Workers of another user plan from it."""
    path = tmp_path / "profile.json"
    profile().save(path)
    assert path.stat().st_mode & 0o777 == 0o644


def test_link_stays_a_link_and_a_file_as_closed_as_it_was(tmp_path: Path) -> None:
    path, link = tmp_path / "real.json", tmp_path / "link.json"
    profile(app="old").save(path)
    path.chmod(0o600)
    link.symlink_to(path)
    profile(app="new").save(link)
    assert link.is_symlink()
    assert SizingProfile.load(path).app == "new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_field_that_a_later_version_adds_is_no_harm(profile_location: ProfileLocation) -> None:
    assert SizingProfile.load(put(profile_location, colour="green")).app == "lms"


BROKEN: dict[str, Any] = {
    "empty": ("", "it is no JSON"),
    "no JSON": (SECRET, "it is no JSON"),
    "deep": ("[" * 60_000, "it is no JSON"),
    "a list": ("[]", "it is no sizing profile"),
    "no schema": (json.dumps({"app": SECRET}), "its schema is not 1"),
    "another schema": (json.dumps(facts(schema=2)), "its schema is not 1"),
    "too long": (json.dumps(facts()) + " " * 70_000, "larger than 64 KB"),
    "missing": (
        json.dumps({k: v for k, v in facts().items() if k != "shared_mb"}),
        "its shared_mb is missing or not valid",
    ),
    "negative": (json.dumps(facts(shared_mb=numbers(-1))), "its shared_mb is missing"),
    "infinite": (json.dumps(facts(thread_mb={"value": float("inf")})), "its thread_mb.value is"),
    "text": (json.dumps(facts(app=1)), "its app is missing or not valid"),
    "inner": (json.dumps(facts(peak_mb={"value": SECRET})), "its peak_mb.value is missing"),
    "nothing": (
        json.dumps(facts(peak_mb={"value": 0, "low": 0, "high": 0})),
        "its peak_mb is missing or not valid",
    ),
    "no spread": (
        json.dumps(facts(cpu_ms={"value": 5, "low": 6, "high": 7})),
        "its cpu_ms is missing or not valid",
    ),
    "huge": (json.dumps(facts(thread_mb=numbers(1) | {"high": 1e308})), "its thread_mb.high is"),
    "year 9999": (
        json.dumps(facts(made_at="9999-12-31T23:59:59-23:59")),
        "its made_at is missing",
    ),
    "year 0": (json.dumps(facts(made_at="0000-01-01T00:00:00Z")), "its made_at is missing"),
    "day 0": (json.dumps(facts(made_at=1e300)), "its made_at is missing"),
    "more than one line": (
        json.dumps(facts(python=f"3.9\nINFO {SECRET}")),
        "its python is missing or not valid",
    ),
    "colours": (json.dumps(facts(server="waitress\x1b[2J")), "its server is missing"),
    "right to left": (json.dumps(facts(flask_workersize="1\u202e0")), "its flask_workersize is"),
    "surrogate": (json.dumps(facts(python="3.9\ud800")), "it is no JSON"),
    "more requests than there are": (json.dumps(facts(requests=10**30)), "its requests is"),
    "no time zone": (json.dumps(facts(made_at="2026-01-01T00:00:00")), "its made_at is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_in_the_instance_folder_is_one_warning_and_the_guide_s_plan(
    profile_location: ProfileLocation, name: str
) -> None:
    text, why = BROKEN[name]
    profile_location.path.write_text(text)
    settings = load(profile_location=profile_location)
    assert settings.profile is None
    (warning,) = settings.warnings
    assert warning.startswith(f"The sizing profile in the instance folder is not usable: {why}")
    assert "flask workersize measure" in warning
    assert SECRET not in warning
    assert "\n" not in warning


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_that_was_named_is_refused(
    profile_location: ProfileLocation, name: str
) -> None:
    text, why = BROKEN[name]
    profile_location.path.write_text(text)
    line = refused({VARIABLE: str(profile_location.path)})
    assert line.startswith(f"{VARIABLE} names a sizing profile that is not usable: {why}")


@given(text=st.binary(max_size=300))
@untimed
def test_any_file_gives_a_profile_or_a_reason(text: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(text)
    found = find_profile(path, None, True)
    assert isinstance(found, str)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)
    # Who waits for somebody to write into it is set free after a while, so that the test ends.
    Thread(target=_set_free, args=[path], daemon=True).start()


def _set_free(path: Path) -> None:
    while path.is_fifo():
        time.sleep(3)
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = os.getcwd()
        os.chdir(path.parent)  # its name may be longer than a socket's can be
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


def a_large_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 * 1024**3)


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (a_pipe, "not a regular file"),
    "socket": (a_socket, "not a regular file"),
    "endless": (make_endless, "not a regular file"),
    "large": (a_large_file, "larger than 64 KB"),
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
}
"""What may stand in the place of a profile, and how it is refused."""


@pytest.mark.skipif(sys.platform == "win32", reason="it has other kinds of files")
@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_is_refused_at_once_and_replaced_by_the_next_measuring(
    profile_location: ProfileLocation, name: str
) -> None:
    """Of any command: each loads the app, and that plans."""
    make, why = ODD[name]
    path = profile_location.path
    make(path)
    app = new_app()
    app.instance_path = profile_location.folder
    WorkerSizing(app)
    told = app.test_cli_runner().invoke(args=["workersize", "plan"])
    assert f"\nWarning: The sizing profile in the instance folder is not usable: {why}. " in (
        told.output
    )
    assert told.exit_code == 0
    assert f"that is not usable: {why}." in refused({VARIABLE: str(path)})
    if name == "endless":
        with pytest.raises(OSError, match="It is a device"):
            profile().save(path)
        assert path.is_char_device()
        return
    made = profile()
    made.save(path)
    assert SizingProfile.load(path) == made
    assert path.stat().st_mode & 0o777 == 0o644


def test_link_that_leads_out_of_a_folder_is_not_followed_if_told_so(tmp_path: Path) -> None:
    folder, outside = tmp_path / "instance", tmp_path / "outside"
    folder.mkdir()
    path = folder / FILE_NAME
    for target in (outside, Path("../outside"), folder / ".." / "outside"):
        path.symlink_to(target)
        with pytest.raises(OSError, match="a link leads out of "):
            profile().save(path, within=folder)
        assert not outside.exists()
        path.unlink()
    path.symlink_to("inside.json")
    made = profile()
    made.save(path, within=folder)
    assert path.is_symlink()
    assert SizingProfile.load(folder / "inside.json") == made
    # The folder may be a link: the operator has made it.
    (tmp_path / "link").symlink_to(folder)
    profile(app="new").save(tmp_path / "link" / FILE_NAME, within=tmp_path / "link")
    assert SizingProfile.load(path).app == "new"


@pytest.mark.parametrize("path", ["a\ud800", "a\0b"])
def test_path_that_no_file_can_have_is_refused(path: str) -> None:
    line = refused(config={"WORKERSIZE_SIZING_PROFILE": path})
    assert line.startswith("app.config WORKERSIZE_SIZING_PROFILE is not a path")


def test_name_of_a_file_forges_no_line(tmp_path: Path) -> None:
    """Nor does it break the output where it is no UTF-8."""
    path = tmp_path / os.fsdecode(b"a\xff\nWarning: \x1b[2J")
    profile().save(path)
    app = new_app(SIZING_PROFILE=str(path))
    WorkerSizing(app)
    run = app.test_cli_runner()
    shown = run.invoke(args=["workersize", "plan"]).output
    assert f"{tmp_path}/a??Warning: ?[2J" in shown
    assert all(char.isprintable() for char in shown.replace("\n", ""))
    told = json.loads(run.invoke(args=["workersize", "plan", "--json"]).output)
    assert told["settings"]["sizing_profile"]["value"] == str(path)


@given(others=st.fixed_dictionaries({}, optional=dict.fromkeys(facts(), ANYTHING)))
@untimed
def test_any_values_give_a_profile_or_a_reason_on_one_line(
    others: dict[str, Any], tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.json"
    path.write_text(json.dumps(facts(**others)))
    found = find_profile(path, None, True)
    assert found is not None
    told = (found,) if isinstance(found, str) else doubts_of(found, "gunicorn")
    assert "".join(told).isprintable()


def test_file_that_was_named_and_is_not_there_is_refused(tmp_path: Path) -> None:
    line = refused({VARIABLE: str(tmp_path / SECRET)})
    assert "that is not usable: there is no such file." in line


def test_folder_is_no_profile(tmp_path: Path) -> None:
    assert "is not usable: Is a directory" in refused({VARIABLE: str(tmp_path)})


def test_no_file_in_the_instance_folder_is_no_news(profile_location: ProfileLocation) -> None:
    settings = load(profile_location=profile_location)
    assert (settings.profile, settings.warnings) == (None, ())


# Which one


def test_profile_in_the_instance_folder_is_found(profile_location: ProfileLocation) -> None:
    put(profile_location)
    settings = load(profile_location=profile_location)
    assert settings.profile is not None
    assert settings.source_of("worker_memory_mb") == "measured"
    assert settings.memory_of_a_worker(1) == (60, 30)
    assert settings.memory_of_a_worker(4) == (60, 36)


@pytest.mark.parametrize("word", ["learn", " Learn "])
def test_server_that_learns_plans_from_what_was_learnt(
    profile_location: ProfileLocation, word: str
) -> None:
    put(profile_location, made_by="learn")
    assert load({VARIABLE: word}, profile_location=profile_location).profile is not None


@pytest.mark.parametrize("word", ["off", "OFF", "0", "no", "false"])
def test_off_ignores_it(profile_location: ProfileLocation, word: str) -> None:
    profile_location.path.write_text("broken")
    settings = load({VARIABLE: word}, profile_location=profile_location)
    assert (settings.profile, settings.warnings) == (None, ())
    assert settings.memory_of_a_worker(4) == (0, 200)


def test_named_file_wins_over_the_instance_folder(
    profile_location: ProfileLocation, tmp_path: Path
) -> None:
    put(profile_location, shared_mb=numbers(1))
    other = tmp_path / "other.json"
    profile(shared_mb=figure(99)).save(other)
    settings = load({VARIABLE: str(other)}, profile_location=profile_location)
    assert settings.profile is not None
    assert settings.profile.shared_mb.value == 99


@pytest.mark.parametrize("variable", ["NOW_LMS_WORKER_MEMORY_MB", "WORKER_MEMORY_MB"])
def test_number_that_is_set_wins_over_a_profile(
    profile_location: ProfileLocation, variable: str
) -> None:
    put(profile_location)
    settings = load({variable: "150"}, profile_location=profile_location)
    assert settings.profile is None
    assert settings.memory_of_a_worker(1) == (0, 150)
    assert settings.source_of("worker_memory_mb") == variable


def test_profile_that_was_found_is_shown_as_such(profile_location: ProfileLocation) -> None:
    put(profile_location)
    settings = load(profile_location=profile_location)
    machine = resources(2, 512)
    told = explain(settings, machine, compute_plan(settings, machine))
    assert "  sizing_profile           found          instance folder\n" in told
    named = load({VARIABLE: str(profile_location.path)}, profile_location=profile_location)
    assert named.source_of("sizing_profile") == VARIABLE


def test_settings_without_an_app_know_a_named_profile_alone(
    profile_location: ProfileLocation,
) -> None:
    put(profile_location)
    assert load().profile is None
    assert load({VARIABLE: str(profile_location.path)}).profile is not None


def test_app_config_can_name_it(profile_location: ProfileLocation) -> None:
    put(profile_location)
    assert (
        load(config={"WORKERSIZE_SIZING_PROFILE": str(profile_location.path)}).profile is not None
    )


@pytest.mark.parametrize("name", ["PROFILE", "profile", "NOW_LMS_PROFILE"])
def test_bare_name_is_no_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert SizingSettings().profile is None


# Foreign, and doubted


@pytest.mark.parametrize(
    ("others", "environ", "why"),
    [
        ({"app": "shop"}, {}, "it is another app's"),
        ({"preload": False}, {}, "it was made with preload off"),
        ({}, {"NOW_LMS_PRELOAD": "off"}, "it was made with preload on"),
    ],
)
def test_foreign_profile_is_not_used(
    profile_location: ProfileLocation, others: dict[str, Any], environ: dict[str, str], why: str
) -> None:
    put(profile_location, **others)
    settings = load(environ, profile_location=profile_location)
    assert settings.profile is None
    assert why in settings.warnings[0]
    with pytest.raises(WorkerSizeConfigError, match=why) as caught:
        load({**environ, VARIABLE: str(profile_location.path)}, profile_location=profile_location)
    check_line(caught.value)


def test_profile_of_another_python_is_used_with_a_warning(
    profile_location: ProfileLocation,
) -> None:
    put(profile_location, python="3.9.1")
    settings = load(profile_location=profile_location)
    assert settings.profile is not None
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"it was made with Python 3.9, this is {here}" in settings.warnings[0]


@pytest.mark.parametrize(
    ("server", "chosen", "is_doubted"),
    [("waitress", "gunicorn", True), ("gunicorn", "waitress", False), ("waitress", "", False)],
)
def test_profile_that_was_learnt_under_waitress_is_too_careful_for_gunicorn(
    profile_location: ProfileLocation, server: str, chosen: str, is_doubted: bool
) -> None:
    put(profile_location, server=f"{server} 3.0.2")
    settings = load({"NOW_LMS_WSGI_SERVER": chosen}, profile_location=profile_location)
    assert settings.profile is not None
    told = ["it was learnt under waitress" in warning for warning in settings.warnings]
    assert told == [True] * is_doubted


def test_profile_of_another_patch_of_python_is_as_good(profile_location: ProfileLocation) -> None:
    put(profile_location, python=f"{sys.version_info.major}.{sys.version_info.minor}.99")
    assert load(profile_location=profile_location).warnings == ()


def test_name_of_the_file_is_the_documented_one(profile_location: ProfileLocation) -> None:
    assert profile_location.path.name == FILE_NAME == "workersize-profile.json"


# Figures


@pytest.mark.parametrize(
    ("values", "value", "expected"),
    [
        ([3.0], None, (3, 3, 3)),
        ([5.0, 1.0, 3.0], None, (3, 1, 5)),
        ([5.0, 1.0, 3.0], 5.0, (5, 1, 5)),
        ([5.0, 1.0, 3.0], 6.0, (6, 1, 6)),
    ],
)
def test_figure_is_the_median_or_what_is_planned_with_and_its_spread(
    values: list[float], value: float | None, expected: tuple[float, float, float]
) -> None:
    figure = Estimate.of(values, value)
    assert (figure.value, figure.low, figure.high) == expected


def test_figure_reads_as_a_number_with_its_spread() -> None:
    assert str(Estimate(value=5.04, low=4.96, high=6.1)) == "5.0 (5.0 to 6.1)"
