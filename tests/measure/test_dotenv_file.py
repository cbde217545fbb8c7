"""Lines are written into .env, and those that are there stay."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dotenv import dotenv_values
from hypothesis import example, given
from hypothesis import strategies as st

from flask_workersize import errors
from flask_workersize.measure.dotenv_file import with_lines, write_lines
from tests.plain import SECRET, make_endless, untimed

LINES = ["NOW_LMS_WORKERS=2", "NOW_LMS_THREADS=8"]


def test_file_that_is_not_there_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    write_lines(path, LINES)
    assert path.read_text().split() == LINES
    assert path.stat().st_mode & 0o777 == 0o600


def test_other_lines_stay_and_a_line_that_is_there_is_replaced_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    before = f"# mine\nSECRET_KEY='{SECRET} # x'\nNOW_LMS_THREADS=4\n\nexport A=\"b c\"\nODD LINE\n"
    path.write_text(before)
    path.chmod(0o640)
    write_lines(path, LINES)
    text = path.read_text()
    assert text == before.replace("THREADS=4", "THREADS=8") + "NOW_LMS_WORKERS=2\n"
    assert path.stat().st_mode & 0o777 == 0o640
    write_lines(path, LINES)
    assert path.read_text() == text


def test_line_that_is_exported_stays_so_and_the_file_its_owner_s(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("export NOW_LMS_WORKERS=4\n")
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    write_lines(path, LINES)
    assert path.read_text() == "export NOW_LMS_WORKERS=2\nNOW_LMS_THREADS=8\n"
    assert path.stat().st_uid == (65534 if os.geteuid() == 0 else os.geteuid())


def test_last_line_without_an_end_keeps_its_value(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=b")
    write_lines(path, LINES)
    assert path.read_text().split() == ["A=b", *LINES]


def test_link_stays_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / ".env"
    path.write_text("A=b\n")
    link.symlink_to(path)
    write_lines(link, LINES)
    assert link.is_symlink()
    assert "NOW_LMS_THREADS=8" in path.read_text()


@pytest.mark.parametrize("name", ["folder", "no/such/folder/.env", "binary"])
def test_file_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + os.urandom(8) + b"\n")
    with pytest.raises(errors.WorkerSizeStartError) as caught:
        write_lines(tmp_path / name, LINES)
    assert caught.value.message.startswith("Cannot write the settings to ")
    assert caught.value.message.endswith("Copy them by hand.")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("A=1\r\nNOW_LMS_THREADS=4\r\nB=2\r\n", "A=1\r\nNOW_LMS_THREADS=8\r\nB=2\r\n"),
        ("NOW_LMS_THREADS=4 # mine", "NOW_LMS_THREADS=8 # mine"),
        ("NOW_LMS_THREADS=4\t#  a  # b \r\n", "NOW_LMS_THREADS=8\t#  a  # b \r\n"),
        ("NOW_LMS_THREADS=4#5\n", "NOW_LMS_THREADS=8\n"),
        ("NOW_LMS_THREADS= # mine\n", "NOW_LMS_THREADS= 8 # mine\n"),
        ("NOW_LMS_THREADS=\n", "NOW_LMS_THREADS=8\n"),
        ("NOW_LMS_THREADS\n", "NOW_LMS_THREADS=8\n"),
        ("NOW_LMS_THREADS # mine\n", "NOW_LMS_THREADS=8 # mine\n"),
        ("NOW_LMS_THREADS='4' # mine\n", "NOW_LMS_THREADS='8' # mine\n"),
        ('  export  NOW_LMS_THREADS = "4 # \\" 5"# x\n', '  export  NOW_LMS_THREADS = "8"# x\n'),
        ("'NOW_LMS_THREADS'=4  \n", "'NOW_LMS_THREADS'=8  \n"),
        ("\n\n\tNOW_LMS_THREADS=4\n", "\n\n\tNOW_LMS_THREADS=8\n"),
        ("NOW_LMS_THREADS=4\nNOW_LMS_THREADS=5\n", "NOW_LMS_THREADS=8\nNOW_LMS_THREADS=8\n"),
        ("\ufeffNOW_LMS_THREADS=4\r\n", "\ufeffNOW_LMS_THREADS=8\r\n"),
        ("\ufeffA=1\r\nB=2", "\ufeffA=1\r\nB=2\r\nNOW_LMS_THREADS=8\r\n"),
        ("A=1\rB=2\r", "A=1\rB=2\rNOW_LMS_THREADS=8\r"),
        ("", "NOW_LMS_THREADS=8\n"),
        ("\ufeff", "\ufeffNOW_LMS_THREADS=8\n"),
        ("KEY='\nNOW_LMS_THREADS=4\n'\n", "KEY='\nNOW_LMS_THREADS=4\n'\nNOW_LMS_THREADS=8\n"),
        ("#NOW_LMS_THREADS=4\n", "#NOW_LMS_THREADS=4\nNOW_LMS_THREADS=8\n"),
        ("MY_NOW_LMS_THREADS=4\n", "MY_NOW_LMS_THREADS=4\nNOW_LMS_THREADS=8\n"),
    ],
)
def test_only_the_value_changes_in_the_text_of_a_file(before: str, after: str) -> None:
    """Ends of lines, mark, quotes and comments stay, and writing it again changes nothing."""
    assert with_lines(before, ["NOW_LMS_THREADS=8"]) == after
    assert with_lines(after, ["NOW_LMS_THREADS=8"]) == after
    assert dotenv_values(stream=io.StringIO(after.removeprefix("\ufeff")))["NOW_LMS_THREADS"] == "8"


PIECES = ["N", "A", "B", "=", "4", "'", '"', "#", " ", "\t", "\n", "\r\n", "\r", "\\", "export "]
texts = st.text(max_size=20) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


@given(text=texts)
@example("N='4'#'5'\n")
@example("N\x85")
@untimed
def test_any_file_has_the_value_afterwards_and_all_others_as_before(text: str) -> None:
    before = dotenv_values(stream=io.StringIO(text.removeprefix("\ufeff")), interpolate=False)
    after = with_lines(text, ["N=8"])
    found = dotenv_values(stream=io.StringIO(after.removeprefix("\ufeff")), interpolate=False)
    assert found == {**before, "N": "8"}
    assert with_lines(after, ["N=8"]) == after


def test_file_stays_as_it_is_to_the_byte(tmp_path: Path) -> None:
    path, other = tmp_path / ".env", tmp_path / "hard link"
    path.write_bytes(b"\xef\xbb\xbfA='1'\r\nNOW_LMS_THREADS=\"4\"  # four\r\n")
    os.link(path, other)
    write_lines(path, LINES)
    assert other.read_bytes() == (
        b"\xef\xbb\xbfA='1'\r\nNOW_LMS_THREADS=\"8\"  # four\r\nNOW_LMS_WORKERS=2\r\n"
    )


def test_link_to_no_file_makes_it_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to("real")
    write_lines(tmp_path / ".env", LINES)
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600


def test_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("SECRET_KEY=mine\n")
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ: a write beyond it fails as one on a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(errors.WorkerSizeStartError):
            write_lines(path, LINES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "SECRET_KEY=mine\n"


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "pipe": (os.mkfifo, "not a regular file"),
    "device": (make_endless, "not a regular file"),
    "folder": (Path.mkdir, "Is a directory"),
    "large": (lambda path: os.truncate(_made(path), 2 * 1024**3), "larger than 1024 KB"),
    "UTF-16": (lambda path: path.write_bytes("A=1".encode("utf-16")), "not a text file"),
}


def _made(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="it has other kinds of files")
@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_of_lines_is_one_line(tmp_path: Path, name: str) -> None:
    make, why = ODD[name]
    path = tmp_path / ".env"
    make(path)
    before = path.lstat()
    with pytest.raises(errors.WorkerSizeStartError) as caught:
        write_lines(path, LINES)
    problem = f"Cannot write the settings to .env: {why}. Copy them by hand."
    assert caught.value.message == problem
    assert path.lstat().st_ino == before.st_ino


@contextmanager
def as_plain_user() -> Iterator[None]:
    """Run as a user who is not root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_file_that_may_only_be_read_stays() -> None:
    """Though its folder may be written to."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        path = Path(folder) / ".env"
        path.write_text("A=1\n")
        path.chmod(0o444)
        with as_plain_user():
            assert path.read_text() == "A=1\n"
            with pytest.raises(errors.WorkerSizeStartError) as caught:
                write_lines(path, LINES)
        assert "Permission denied" in caught.value.message
        assert path.read_text() == "A=1\n"
