"""Runs that are rehearsed before they are submitted, on emulated nodes and on a real Slurm."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.runs import CHECKOUT, submit, submit_command, verb, wait, wait_until
from toolkit.launch.ledger import find_job_record, read_attempts
from toolkit.rundir import RunDir

SPLIT = ("--nodes", "2", "parallel.stages=2", "cluster.cpus_per_task=1")
LOCAL = ("cluster.scheduler=local", "--rehearse")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))[0]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A dataset whose shards have their size, and nothing else."""
    copy = tmp_path_factory.mktemp("damaged") / "dataset"
    shutil.copytree(dataset, copy)
    for shard in (copy / "train").glob("*.arrow"):
        data = shard.read_bytes()
        shard.write_bytes(b"\xff" * 400 + data[400:])
    return copy


def rehearsal_of(root: Path) -> RunDir:
    return RunDir(root / ".rehearsals" / "tiny" / "tiny")


def test_a_run_that_is_rehearsed_well_is_submitted_and_nothing_else_is_left(tmp_path: Path, dataset: Path) -> None:
    root, checkpoints = tmp_path / "runs", tmp_path / "disk" / "checkpoints"
    done = submit(root, dataset, *SPLIT, *LOCAL, f"checkpoint.dir={checkpoints}")
    assert done.returncode == 0, done.stderr
    phases = (
        "started: 2 ranks on 2 nodes",
        "first step done",
        f"saved in {checkpoints}/.rehearsals/tiny",
        "stopped after step 4 as at a time limit, saved: requeued",
        "went on from the checkpoint of step 4",
        "finished step 6",
        "rehearsed  good",
        "not seen   GPUs",
        "run tiny: job 1 submitted",
    )
    places = [done.stdout.index(phase) for phase in phases]
    assert places == sorted(places)
    run = wait(RunDir(root / "tiny"))
    assert (run["job"]["state"], run["step"]) == ("COMPLETED", 20)
    assert not (root / ".rehearsals").exists()
    assert sorted(entry.name for entry in checkpoints.iterdir()) == ["step-00000010", "step-00000020"]


def test_a_line_that_fails_on_the_nodes_is_found_before_anything_is_submitted(tmp_path: Path, dataset: Path) -> None:
    done = submit(tmp_path, dataset, *SPLIT, *LOCAL, 'cluster.setup=["modul load cuda"]')
    assert done.returncode == 3
    assert "error: the rehearsal failed: rank " in done.stderr
    assert "modul: command not found" in done.stderr
    log = Path(done.stderr.split("log: ")[1].strip())
    assert "modul" in log.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == [".rehearsals"]


def test_code_that_cannot_be_imported_on_a_rank_is_found(tmp_path: Path, dataset: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("toolkit", "configs", "sbatch"):
        shutil.copytree(CHECKOUT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(CHECKOUT / "submit.py", checkout)
    loop = checkout / "toolkit" / "train" / "loop.py"
    loop.write_text("import nowhere\n" + loop.read_text(encoding="utf-8"), encoding="utf-8")
    command = submit_command(tmp_path / "runs", *SPLIT, *LOCAL, f"data.path={dataset}")
    command[1] = str(checkout / "submit.py")
    environ = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 3, done.stderr
    assert "ModuleNotFoundError: No module named 'nowhere'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rehearsal_that_is_broken_off_leaves_nothing_and_only_one_goes_at_a_time(
    tmp_path: Path, dataset: Path
) -> None:
    root = tmp_path / "runs"
    command = submit_command(root, *SPLIT, *LOCAL, "--dry-run", f"data.path={dataset}")
    environ = {**os.environ, "HOME": str(tmp_path)}
    with subprocess.Popen(command, cwd=CHECKOUT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        wait_until(lambda: find_job_record(rehearsal_of(root)) is not None)
        second = submit(root, dataset, *SPLIT, *LOCAL)
        first.send_signal(signal.SIGINT)
        said = first.communicate(timeout=60)[1]
    assert first.returncode == 130, said
    assert second.returncode == 2
    assert "run tiny is being rehearsed" in second.stderr
    assert "cancel tiny --root" in second.stderr
    assert not root.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--on-cluster",), "--on-cluster without --rehearse"),
        (("--on-cluster", "--rehearse"), "nodes are emulated on this machine"),
    ],
)
def test_a_cluster_is_needed_to_rehearse_on_one(
    tmp_path: Path, dataset: Path, words: tuple[str, ...], said: str
) -> None:
    done = submit(tmp_path, dataset, *SPLIT, "cluster.scheduler=local", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cluster
@pytest.mark.usefixtures("slurm")
def test_on_a_cluster_the_run_starts_when_its_rehearsal_was_good(tmp_path: Path, dataset: Path) -> None:
    words = (*SPLIT, "--time", "10m", "--rehearse", "--on-cluster", f"checkpoint.dir={tmp_path}/disk")
    root = tmp_path / "runs"
    shown = submit(root, dataset, *words, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "rehearsal  2 stages x 1 replica on 2 nodes, twice 5 minutes at most" in shown.stdout
    assert shown.stdout.count("#!/bin/bash") == 2
    assert not root.exists()

    done = submit(root, dataset, *words)
    assert done.returncode == 0, done.stderr
    waiting = verb(root, "status", "tiny").stdout
    assert "(Dependency)" in waiting
    assert "its rehearsal: job " in waiting
    run = wait(RunDir(root / "tiny"))
    assert (run["job"]["state"], run["step"]) == ("COMPLETED", 20)
    stop, end = read_attempts(rehearsal_of(root))
    assert (stop.outcome, stop.next, end.outcome, end.first_step) == ("REQUEUE", "requeued", "FINISHED", 4)
    assert run["attempts"][0]["start_time"] > (end.end_time or 0)
    assert sorted(entry.name for entry in (tmp_path / "disk").iterdir()) == ["step-00000010", "step-00000020"]


@pytest.mark.cluster
@pytest.mark.usefixtures("slurm")
def test_on_a_cluster_the_run_never_starts_when_its_rehearsal_failed(tmp_path: Path, damaged: Path) -> None:
    done = submit(tmp_path, damaged, *SPLIT, "--time", "10m", "--rehearse", "--on-cluster")
    assert done.returncode == 0, done.stderr
    run = wait(RunDir(tmp_path / "tiny"))
    assert (run["job"]["state"], run["job"]["reason"]) == ("CANCELLED", "DependencyNeverSatisfied")
    assert run["attempts"] == []
    said = verb(tmp_path, "status", "tiny").stdout
    assert re.search(r"the rehearsal failed: rank (\d) on node\d: .* is no token shard", said)
    assert f"log: {rehearsal_of(tmp_path).logs_dir}" in said
