"""A disk that fills up while a run saves: periodic saves are tried again, the last one must not be lost silently."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.runs import submit, wait
from toolkit.checkpoint import layout
from toolkit.launch.ledger import read_failures
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


def test_a_last_save_that_finds_no_room_fails_on_every_rank(tmp_path: Path, dataset: Path, disk: Path) -> None:
    asked = (*ASKED, "run.tokens=102_400", f"checkpoint.dir={disk}/checkpoints", "cluster.max_fruitless=1")
    assert submit(tmp_path, dataset, *asked).returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    checkpoints_dir = run_dir.find_checkpoints(f"{disk}/checkpoints")
    wait_for_checkpoint(checkpoints_dir, after=0)
    fill(disk)
    run = wait(run_dir)
    assert run["job"]["state"] == "FAILED"
    failures = [failure.error for failure in read_failures(run_dir, run["attempts"][-1]["attempt"])]
    assert len(failures) == 2
    assert all("could not be" in error and ("iB free" in error or "No space" in error) for error in failures), failures
    assert len(layout.list_steps(checkpoints_dir)) == 1
    assert layout.newest(checkpoints_dir) is not None
