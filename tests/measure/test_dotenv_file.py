"""Lines are written into .env, and those that are there stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flask_workersize import errors
from flask_workersize.measure.dotenv_file import write_lines
from tests.plain import SECRET

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
    assert caught.value.message.startswith("The lines cannot be written to ")
    assert caught.value.message.endswith("Copy them by hand.")
    assert caught.value.exit_code == 1
