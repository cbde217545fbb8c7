"""flask workersize export: where it writes to, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from flask_workersize import WorkerSizing
from flask_workersize.app_state import get_state
from flask_workersize.export.render import TARGETS
from tests.plain import MB, clear_environment, new_app


@pytest.fixture(autouse=True)
def _only_what_a_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


def run(*arguments: str) -> Result:
    """Run the command for an app that holds 50 MB."""
    app = new_app()
    WorkerSizing(app)
    get_state(app).held_bytes = 50 * MB
    return app.test_cli_runner().invoke(args=["workersize", "export", *arguments])


def refused(*arguments: str, status: int = 2) -> str:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (status, "")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_manifests_go_to_standard_output_as_kubectl_reads_them() -> None:
    done = run("kubernetes", "--memory", "512M", "--replicas", "2..6")
    assert (done.exit_code, done.stderr) == (0, "")
    kinds = [item["kind"] for item in yaml.safe_load_all(done.stdout)]
    assert kinds[0] == "Deployment"
    assert kinds[-1] == "HorizontalPodAutoscaler"


def test_several_files_are_each_under_their_name() -> None:
    done = run("systemd", "--memory", "512M", "--name", "shop")
    assert done.stdout.startswith("# ---- shop.service ----\n")
    assert "\n# ---- shop.socket ----\n" in done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_written_to_a_folder_that_is_made(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "deploy" / target
    done = run(target, "--memory", "512M", "-o", str(folder))
    assert (done.exit_code, done.stderr) == (0, "")
    names = sorted(path.name for path in folder.iterdir())
    assert done.stdout.strip().endswith(": " + ", ".join(names)) or len(names) > 1
    assert all((folder / name).stat().st_mode & 0o777 == 0o666 & ~umask() for name in names)


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_nothing_is_overwritten_and_nothing_written_where_one_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "haproxy.cfg").write_text("mine")
    said = refused("compose", "--memory", "512M", "-o", str(tmp_path))
    assert said.startswith("Error: haproxy.cfg in the folder of -o would be overwritten")
    assert [path.name for path in tmp_path.iterdir()] == ["haproxy.cfg"]
    assert (tmp_path / "haproxy.cfg").read_text() == "mine"
    assert run("compose", "--memory", "512M", "-o", str(tmp_path), "--force").exit_code == 0
    assert (tmp_path / "haproxy.cfg").read_text().startswith("# lms")


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "nginx.conf").symlink_to(other)
    assert "--force" in refused("nginx", "--memory", "512M", "-o", str(tmp_path))
    assert run("nginx", "--memory", "512M", "-o", str(tmp_path), "--force").exit_code == 0
    assert other.read_text() == "mine"


@pytest.mark.parametrize("in_the_way", ["folder", "file"])
def test_what_cannot_be_written_to_is_one_line(in_the_way: str, tmp_path: Path) -> None:
    if in_the_way == "folder":
        (tmp_path / "haproxy.cfg").mkdir()
        folder = tmp_path
    else:
        folder = tmp_path / "file"
        folder.write_text("mine")
    said = refused("compose", "--memory", "512M", "--force", "-o", str(folder), status=1)
    assert said.startswith("Error: -o cannot be written to: ")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["helm"], "TARGET must be one of compose, kubernetes"),
        (["--memory", "512"], "--memory is not a size with a unit"),
        (["--memory", "1K"], "--memory is not a size from 1M"),
        (["--memory", "100M"], "100 MB is too little: the loaded app takes 50 MB, plus 1 × 200 MB"),
        (["--cpus", "0"], "--cpus is not a number above 0"),
        (["--cpus", "0.001"], "--cpus is not a number from 0.01"),
        (["--replicas", "0"], "--replicas is not a whole number from 1"),
        (["--replicas", "6..2"], "--replicas is not a range"),
        (["--replicas", "2..x"], "--replicas is not a whole number"),
        (["--autoscale", "magic"], "--autoscale must be one of cpu, keda, none."),
        (["--autoscale", "keda"], "--autoscale keda needs a range to choose in"),
        (["--replicas", "2..6", "--autoscale", "none"], "--autoscale has to be cpu or keda"),
        (["--drain", "soon"], "--drain is not a whole number"),
        (["--name", "My App"], "--name is not valid"),
        (["--name", "a\nb: c"], "--name is not valid"),
        (["--image", 'lms:1"\n'], "--image is not valid"),
        (["--force"], "--force needs -o"),
        (["-o", ""], "-o is empty"),
        (["--name", "balancer"], "--name balancer means something else"),
        (["--name", "on"], "--name on means something else"),
        (["--image", "a:b:c"], "--image is not valid"),
        (["--image", "a//b"], "--image is not valid"),
        (["--image", "a/../b"], "--image is not valid"),
        (["--image", "a@sha256:1"], "--image is not valid"),
        (["--memory", "1e3Mi"], "--memory is not a size with a unit"),
        (["--memory", "NaN"], "--memory is not a size with a unit"),
        (["--cpus", "NaN"], "--cpus is not a number above 0"),
        (["--replicas", "-1"], "--replicas is not a whole number"),
        (["--drain", "1e3"], "--drain is not a whole number"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], says: str) -> None:
    target = [] if arguments == ["helm"] else ["kubernetes"]
    assert says in refused(*target, "--memory", "512M", *arguments)


def test_memory_that_is_not_known_names_both_ways() -> None:
    said = refused("kubernetes")
    assert "flask workersize measure" in said
    assert "--memory 512M" in said


def test_memory_that_is_named_in_a_refusal_is_enough() -> None:
    assert "Use --memory 250M or more." in refused("kubernetes", "--memory", "249M")
    assert run("kubernetes", "--memory", "250M").exit_code == 0
