"""A disk that fills up while a run saves: periodic saves are tried again, the last one must not be lost silently."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.runs import losses, submit, wait
from toolkit.checkpoint import layout
from toolkit.rundir import RunDir

ASKED = ("--nodes", "2", "parallel.stages=2", "cluster.scheduler=local", "checkpoint.save_every=5", "checkpoint.keep=1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))[0]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted: run the tests as root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is; give what takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return filler


def wait_for_checkpoint(checkpoints_dir: Path, *, after: int) -> None:
    deadline = time.monotonic() + 120
    while max(layout.list_steps(checkpoints_dir), default=0) <= after:
        assert time.monotonic() < deadline, list(checkpoints_dir.parent.rglob("*"))
        time.sleep(0.05)


def wait_for_words(run_dir: RunDir, words: str) -> None:
    deadline = time.monotonic() + 120
    while words not in read_logs(run_dir):
        assert time.monotonic() < deadline, read_logs(run_dir)
        time.sleep(0.05)


def read_logs(run_dir: RunDir) -> str:
    return "".join(path.read_text() for path in run_dir.root.glob("logs/*/*.out"))


def test_a_run_outlives_a_full_disk_and_saves_again_when_there_is_room(
    tmp_path: Path, dataset: Path, disk: Path
) -> None:
    long = ("run.tokens=204_800", f"checkpoint.dir={disk}/checkpoints")
    assert submit(tmp_path, dataset, *ASKED, *long).returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    checkpoints_dir = run_dir.find_checkpoints(f"{disk}/checkpoints")
    wait_for_checkpoint(checkpoints_dir, after=0)
    filler = fill(disk)
    wait_for_words(run_dir, "is not saved; training goes on")
    reached = max(layout.list_steps(checkpoints_dir))
    filler.unlink()
    wait_for_checkpoint(checkpoints_dir, after=reached)
    assert wait(run_dir)["job"]["state"] == "COMPLETED"
    assert layout.list_steps(checkpoints_dir) == [len(losses(run_dir))]


def test_a_last_save_that_finds_no_room_fails_on_every_rank(tmp_path: Path, dataset: Path, disk: Path) -> None:
    assert submit(tmp_path, dataset, *ASKED, "run.tokens=102_400", f"checkpoint.dir={disk}/checkpoints").returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    checkpoints_dir = run_dir.find_checkpoints(f"{disk}/checkpoints")
    wait_for_checkpoint(checkpoints_dir, after=0)
    fill(disk)
    run = wait(run_dir)
    assert run["job"]["state"] == "FAILED"
    failures = [json.loads(path.read_text())["error"] for path in run_dir.root.glob("logs/*/*.failure.json")]
    assert len(failures) == 2
    assert all("could not be" in error and ("GiB free" in error or "No space" in error) for error in failures), failures
    assert len(layout.list_steps(checkpoints_dir)) == 1
    assert layout.newest(checkpoints_dir) is not None
