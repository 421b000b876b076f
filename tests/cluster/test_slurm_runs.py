"""Training runs on a real Slurm."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.runs import CHECKOUT, losses, rank_processes, submit, wait, wait_for_step
from toolkit.rundir import RunDir

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]

# nodes of the test cluster say that they have more cores than this machine
SPLIT = ("--nodes", "2", "parallel.stages=2", "cluster.cpus_per_task=1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> RunDir:
    """A run of 60 steps that nothing disturbs."""
    root = tmp_path_factory.mktemp("whole")
    done = submit(root, dataset, *SPLIT, "--time", "10m", "run.tokens=61_440")
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(root / "tiny")
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    assert run["attempts"][-1]["nodes"] == ("node1", "node2")
    assert len(losses(run_dir)) == 60
    return run_dir


def test_the_sbatch_template_goes_on_with_a_run(whole: RunDir) -> None:
    environ = {**os.environ, "RUN_DIR": str(whole.root), "TOOLKIT_PYTHON": sys.executable}
    command = ["sbatch", "--parsable", "--wait", "--nodes=2", "--time=10", "--output=/dev/null", "sbatch/train.sbatch"]
    again = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 0, again.stderr
    log = whole.rank_log_path(f"{again.stdout.strip()}.0", rank=0).read_text(encoding="utf-8")
    assert "resumed from" in log
    assert "FINISHED at step 60" in log


def test_a_run_that_is_told_to_stop_is_requeued_and_equals_one_that_never_stopped(
    tmp_path: Path, dataset: Path, whole: RunDir
) -> None:
    done = submit(tmp_path, dataset, *SPLIT, "--time", "10m", "run.tokens=61_440", "checkpoint.save_every=1000")
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(tmp_path / "tiny")
    wait_for_step(run_dir, 5)
    rank_processes(run_dir)[1].send_signal(signal.SIGUSR2)
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    assert run["job"]["restarts"] == 1
    assert [attempt["outcome"] for attempt in run["attempts"]] == ["REQUEUE", "FINISHED"]
    assert losses(run_dir) == losses(whole)
    assert sorted(path.name for path in run_dir.logs_dir.iterdir() if path.is_dir()) == [
        f"{run['job']['job_id']}.{restart}" for restart in (0, 1)
    ]


def test_refusals_name_what_there_is_and_leave_nothing_behind(tmp_path: Path, dataset: Path) -> None:
    root = tmp_path / "runs"
    done = submit(root, dataset, "--nodes", "9", "--time", "9-00:00:00", "data.seq_len=100")
    assert done.returncode == 2
    assert "--nodes 9" in done.stderr
    assert "partition main has 4" in done.stderr
    assert "partition main allows 48 h" in done.stderr
    assert "a step holds whole samples" in done.stderr
    done = submit(root, dataset, "--nodes", "1", "--partition", "nope")
    assert "there is no partition 'nope'" in done.stderr
    assert "main, low" in done.stderr
    done = submit(root, dataset, "--nodes", "1", "cluster.constraint=nope")  # only Slurm itself knows
    assert done.returncode == 3
    assert "Slurm refused the script" in done.stderr
    assert "feature" in done.stderr.lower()
    assert not root.exists()


def test_a_dry_run_shows_what_would_be_submitted_and_submits_nothing(tmp_path: Path, dataset: Path) -> None:
    before = queue()
    done = submit(tmp_path, dataset, "--nodes", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "2 replicas on 2 nodes" in done.stdout
    script = done.stdout[done.stdout.index("#!/bin/bash") :]
    for line in ("#SBATCH --nodes=2", "#SBATCH --requeue", "#SBATCH --cpus-per-task=8", "#SBATCH --time=2880"):
        assert line in script.splitlines(), script
    assert re.search(r"ok +partition +2 of \d usable nodes of main", done.stdout), done.stdout
    assert re.search(r"(ok|note) +start ", done.stdout), done.stdout
    assert queue() == before
    assert not (tmp_path / "tiny").exists()


def queue() -> str:
    return subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout
