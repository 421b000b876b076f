"""The gate on a real Slurm, through the command line: what is refused, what is accepted, what is shown."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.runs import submit, verb, wait
from toolkit.cluster.slurm import SlurmCluster
from toolkit.rundir import RunDir

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]

CPU = ("--nodes", "2", "--time", "10m", "cluster.cpus_per_task=1")


def test_all_refusals_come_at_once_and_an_accepted_one_lets_the_run_go(tmp_path: Path) -> None:
    dataset, manifest = make_dataset(tmp_path)
    shard = dataset / manifest.splits["train"][-1].path
    with shard.open("ab") as file:
        file.write(b"\0")
    asked = (*CPU, "cluster.constraint=nope", "cluster.mem_per_node=1M")
    done = submit(tmp_path / "runs", dataset, *asked)
    assert done.returncode == 3
    refused = re.findall(r"^(?:error: )?([\w-]+): ", done.stderr, flags=re.MULTILINE)
    assert refused == ["host-memory", "shards", "start"]
    assert f"{shard} has" in done.stderr
    assert "  prepare the dataset again; or --accept shards\n" in done.stderr
    assert not (tmp_path / "runs").exists()

    done = submit(tmp_path / "runs", dataset, *asked, "--accept", "shards", "--accept", "host-memory", "--dry-run")
    assert done.returncode == 3
    assert "shards" not in done.stderr
    accepted = submit(tmp_path / "runs", dataset, *CPU, "--accept", "shards", "run.tokens=4096")
    assert accepted.returncode == 0, accepted.stderr
    assert re.search(r"accepted +shards +\S+ has", accepted.stdout)
    wait(RunDir(tmp_path / "runs" / "tiny"))


def test_a_check_that_does_not_exist_is_told_with_those_that_do(tmp_path: Path) -> None:
    done = submit(tmp_path / "runs", tmp_path, "--accept", "everything")
    assert done.returncode == 2
    assert "--accept everything" in done.stderr
    assert "checks are: memory, " in done.stderr


def test_a_resume_passes_the_gate_too(tmp_path: Path) -> None:
    dataset, manifest = make_dataset(tmp_path)
    root = tmp_path / "runs"
    assert submit(root, dataset, *CPU, "run.tokens=4096").returncode == 0
    wait(RunDir(root / "tiny"))
    os.truncate(dataset / manifest.splits["train"][0].path, 8)
    refused = verb(root, "resume", "tiny", "--dry-run")
    assert refused.returncode == 3
    assert "shards: " in refused.stderr
    assert verb(root, "resume", "tiny", "--dry-run", "--accept", "shards").returncode == 0


def test_nodes_that_are_down_let_a_job_wait_instead_of_being_refused(tmp_path: Path) -> None:
    dataset, _ = make_dataset(tmp_path)
    words = ["scontrol", "update", "NodeName=node3", "State=DRAIN", "Reason=test"]
    subprocess.run(words, check=True)
    try:
        done = submit(tmp_path / "runs", dataset, "--nodes", "4", "--dry-run")
    finally:
        subprocess.run(["scontrol", "update", "NodeName=node3", "State=RESUME"], check=True)
    assert done.returncode == 0, done.stderr
    assert "3 of the 4 nodes of main can be used, 4 are asked for" in done.stdout
    assert re.search(r"note +start +no one can tell", done.stdout), done.stdout


def test_the_verbs_of_the_gate_answer_on_a_real_slurm() -> None:
    cluster = SlurmCluster()
    assert cluster.accounting() is None
    assert cluster.runs_here("main")
