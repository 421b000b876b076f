"""A run's life on a newer Slurm than the one that is installed: the same, whatever its answers look like."""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.devcluster.shapes import Shape, mini
from tests.devcluster.sites import Site
from tests.runs import losses, rank_processes, submit, verb, wait, wait_for_attempts, wait_for_step
from toolkit.rundir import RunDir

pytestmark = pytest.mark.cluster

SMALL = ("cluster.cpus_per_task=1", "checkpoint.save_every=1000", "--gpus-per-node", "1")


@pytest.fixture(scope="module")
def newer(start_site: Callable[[Shape], Site]) -> Iterator[Site]:
    """Give a Slurm 24.11 with GPUs, to which the commands of this module talk."""
    site = start_site(dataclasses.replace(mini(nodes=3, gpus=2, cpus=8, kill_wait_s=9), release="trixie"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(site.conf))
        patch.setenv("PATH", site.search_path(os.environ["PATH"]))
        yield site


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))[0]


def test_it_is_newer(newer: Site) -> None:
    assert newer.ask("sinfo", "-V").split()[1] >= "24.11"


def test_a_run_that_nothing_disturbs_finishes(newer: Site, tmp_path: Path, dataset: Path) -> None:
    done = submit(tmp_path, dataset, *SMALL, "--nodes", "2", "--time", "10m", "run.tokens=20_480")
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(tmp_path / "tiny")
    run = wait(run_dir)
    assert (run["job"]["state"], run["attempts"][-1]["outcome"]) == ("COMPLETED", "FINISHED"), run
    assert len(losses(run_dir)) == 20


def test_a_run_is_stopped_goes_on_on_other_nodes_loses_a_rank_and_comes_to_its_limit(
    newer: Site, tmp_path: Path, dataset: Path
) -> None:
    # it never finishes by itself
    done = submit(tmp_path, dataset, *SMALL, "--nodes", "1", "--time", "10m", "run.tokens=102_400_000")
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(tmp_path / "tiny")
    wait_for_step(run_dir, 5)
    assert verb(tmp_path, "stop", "tiny").returncode == 0
    stopped = wait(run_dir)
    assert (stopped["job"]["state"], stopped["attempts"][-1]["outcome"]) == ("COMPLETED", "STOPPED"), stopped
    step = len(losses(run_dir))

    done = verb(tmp_path, "resume", "tiny", "--nodes", "2")
    assert done.returncode == 0, done.stderr
    wait_for_step(run_dir, step + 5)
    rank_processes(run_dir)[1].send_signal(signal.SIGKILL)
    wait_for_attempts(run_dir, 3, ended=False)

    job_id = newer.ask("squeue", "-h", "-n", "tiny", "-o", "%A").strip()
    newer.ask("scontrol", "update", f"jobid={job_id}", "timelimit=1")
    wait_for_attempts(run_dir, 3, ended=True)
    assert verb(tmp_path, "cancel", "tiny").returncode == 0
    run = wait(run_dir)
    assert run["job"]["state"] == "CANCELLED", run
    killed, ended = run["attempts"][1:3]
    assert (killed["outcome"], killed["reason"], killed["next"]) == ("KILLED", "rank 1 on node2: Killed", "requeued")
    assert (ended["outcome"], ended["reason"], ended["next"]) == ("REQUEUE", "the time limit is near", "requeued")


def test_what_the_cluster_has_is_shown(newer: Site, tmp_path: Path) -> None:
    newer.ask("scontrol", "update", "nodename=node3", "state=drain", "reason=fan | broken [2]")
    shown = verb(tmp_path, "cluster")
    newer.ask("scontrol", "update", "nodename=node3", "state=resume")
    assert shown.returncode == 0, shown.stderr
    assert "3 nodes, 2 free" in shown.stdout
    assert "4 of 6 GPUs free" in shown.stdout
    assert "fan | broken [2]" in shown.stdout
    assert "2 h100" in shown.stdout
