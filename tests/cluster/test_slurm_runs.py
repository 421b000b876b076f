"""Training runs on a real Slurm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.runs import CHECKOUT, losses, submit, wait
from toolkit.cluster.slurm import SlurmCluster
from toolkit.rundir import RunDir

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))[0]


def test_a_run_on_two_nodes_finishes_and_the_sbatch_template_goes_on_with_it(tmp_path: Path, dataset: Path) -> None:
    done = submit(tmp_path, dataset, "--nodes", "2", "parallel.stages=2", "--time", "10m")
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(tmp_path / "tiny")
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    assert run["attempts"][-1]["nodes"] == ("node1", "node2")
    assert len(losses(run_dir)) == 20
    environ = {**os.environ, "RUN_DIR": str(run_dir.root), "TOOLKIT_PYTHON": sys.executable}
    command = [
        "sbatch",
        "--parsable",
        "--wait",
        "--nodes=2",
        "--time=10",
        "--output=/dev/null",
        "sbatch/train.sbatch",
    ]
    again = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 0, again.stderr
    log = run_dir.rank_log_path(f"{again.stdout.strip()}.0", rank=0).read_text(encoding="utf-8")
    assert "resumed from" in log
    assert "FINISHED at step 20" in log


def test_refusals_name_what_there_is_and_leave_nothing_behind(tmp_path: Path, dataset: Path) -> None:
    done = submit(tmp_path, dataset, "--nodes", "9", "--time", "9-00:00:00")
    assert done.returncode == 2
    assert "--nodes 9" in done.stderr
    assert "partition main has 4" in done.stderr
    assert "partition main allows 48 h" in done.stderr
    assert not (tmp_path / "tiny").exists()
    done = submit(tmp_path, dataset, "--nodes", "1", "--partition", "nope")
    assert "there is no partition 'nope'" in done.stderr
    assert "main, low" in done.stderr


def test_a_killed_rank_ends_the_job_and_is_named(tmp_path: Path, dataset: Path) -> None:
    done = submit(tmp_path, dataset, "--nodes", "2", "parallel.stages=2", "run.tokens=200_000_000", name="victim")
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(tmp_path / "victim")
    from tests.runs import wait_for_step

    wait_for_step(run_dir, 3)
    job = SlurmCluster()
    job_id = run_dir.job_path.read_text(encoding="utf-8").split('"job_id": "')[1].split('"')[0]
    found = subprocess.run(
        ["pgrep", "-f", f"toolkit.launch.job {run_dir.root}$"], capture_output=True, text=True, check=True
    )
    pids = [pid for pid in found.stdout.split() if _rank_of(pid) == "1"]
    subprocess.run(["kill", "-9", *pids], check=True)
    run = wait(run_dir)
    assert run["job"]["state"] == "FAILED", run
    assert "rank 1 on node2" in run["job"]["exit_note"], run
    assert not job.state(job_id).state.is_live


def _rank_of(pid: str) -> str:
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((entry.split(b"=")[1].decode() for entry in environ if entry.startswith(b"SLURM_PROCID=")), "")
