"""Training runs on a real Slurm."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.runs import CHECKOUT, losses, rank_processes, submit, verb, wait, wait_for_step
from toolkit.launch.ledger import read_attempts
from toolkit.rundir import RunDir

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]

# nodes of the test cluster say that they have more cores than this machine
SPLIT = ("--nodes", "2", "parallel.stages=2", "cluster.cpus_per_task=1")
LONG = "run.tokens=200_000_000"


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


def test_slurm_warns_before_the_time_limit_and_the_run_goes_on_after_a_requeue(tmp_path: Path, dataset: Path) -> None:
    limit = ("--time", "1m", "cluster.signal_delay_s=50")  # Slurm may send it up to 60 s early: during start-up
    done = submit(tmp_path, dataset, *SPLIT, *limit, LONG, "checkpoint.save_every=1000")
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(tmp_path / "tiny")
    deadline = time.monotonic() + 200
    while len(read_attempts(run_dir)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    first, _ = read_attempts(run_dir)
    wait_for_step(run_dir, (first.last_step or 0) + 3)
    assert verb(tmp_path, "cancel", "tiny").returncode == 0
    run = wait(run_dir, timeout_s=30)
    assert run["job"]["state"] == "CANCELLED", run
    first, second = run["attempts"][:2]
    assert (first["outcome"], first["reason"]) == ("REQUEUE", "the time limit is near")
    assert second["first_step"] == first["last_step"]
    assert rank_processes(run_dir) == []


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
    assert done.returncode == 2
    assert "Slurm refused to take tiny" in done.stderr
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
    assert re.search(r"would start at \S+ using 16 processors on nodes node\[1-2\] in partition main", done.stdout)
    assert queue() == before
    assert not (tmp_path / "tiny").exists()


def queue() -> str:
    return subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout


def test_a_killed_rank_ends_the_job_and_is_named(tmp_path: Path, dataset: Path) -> None:
    done = submit(tmp_path, dataset, *SPLIT, LONG, name="victim")
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(tmp_path / "victim")
    wait_for_step(run_dir, 3)
    rank_processes(run_dir)[1].kill()
    run = wait(run_dir)
    assert run["job"]["state"] == "FAILED", run
    assert "rank 1 on node2" in run["job"]["exit_note"], run
    said = verb(tmp_path, "status", "victim").stdout
    assert "ended by rank 1 on node2" in said
    assert "last lines of" in said
    assert run["attempts"][-1]["outcome"] == "FAILED"
