"""Job arrays and dependencies, on emulated nodes and on a real Slurm."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.cluster.base import Cluster, JobState, JobStatus
from toolkit.cluster.local import LocalCluster
from toolkit.cluster.slurm import SlurmCluster
from toolkit.cluster.spec import ARRAY_TASK, JobSpec
from toolkit.launch.snapshot import freeze_code, name_code

SCRIPT = 'sleep 0.3; echo "$1 of $SLURM_ARRAY_JOB_ID" >> "$2"; [ ! -e "$2.fail-$1" ]'


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.cluster)])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    freeze_code(tmp_path / "code")
    (tmp_path / "logs").mkdir()
    if request.param == "slurm":
        request.getfixturevalue("slurm")
        yield SlurmCluster()
    else:
        yield LocalCluster(tmp_path / "state")


def make_spec(directory: Path, **fields: object) -> JobSpec:
    words = {
        "name": "prepare",
        "nodes": 1,
        "tasks_per_node": 1,
        "gpus_per_node": 0,
        "cpus_per_task": 1,
        "time_limit_s": 600,
    }
    command = ("bash", "-c", SCRIPT, "-", ARRAY_TASK, str(directory / "done"))
    return JobSpec(
        **{
            "command": command,
            "work_dir": name_code(directory / "code"),
            "log_dir": directory / "logs",
            **words,
            **fields,
        }  # type: ignore[arg-type]
    )


def wait(cluster: Cluster, job_id: str) -> JobStatus:
    deadline = time.monotonic() + 60
    while (status := cluster.state(job_id)).state.is_live and time.monotonic() < deadline:
        time.sleep(0.1)
    return status


def test_a_job_waits_for_all_tasks_of_an_array(cluster: Cluster, tmp_path: Path) -> None:
    array = cluster.submit(make_spec(tmp_path, array=(0, 1, 2, 5, 9)), script_path=tmp_path / "array.sh")
    after = make_spec(tmp_path, command=("cp", str(tmp_path / "done"), str(tmp_path / "merged")))
    spec = make_spec(tmp_path, command=after.command, dependency=f"afterok:{array}")
    merge = cluster.submit(spec, script_path=tmp_path / "merge.sh")
    assert cluster.state(merge).state is JobState.PENDING
    assert wait(cluster, merge).state is JobState.COMPLETED
    assert cluster.state(array).state is JobState.COMPLETED
    assert cluster.state(array).job_id == array
    lines = sorted((tmp_path / "merged").read_text(encoding="utf-8").splitlines())
    assert lines == [f"{index} of {array}" for index in (0, 1, 2, 5, 9)]
    assert {path.name for path in (tmp_path / "logs").iterdir() if path.is_dir()} >= {f"{array}_9.0", f"{merge}.0"}


def test_a_task_that_fails_leaves_the_others_alone_and_what_depends_on_it_never_starts(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "done.fail-1").touch()
    array = cluster.submit(make_spec(tmp_path, array=(0, 1, 2)), script_path=tmp_path / "array.sh")
    spec = make_spec(tmp_path, command=("touch", str(tmp_path / "merged")), dependency=f"afterok:{array}")
    merge = cluster.submit(spec, script_path=tmp_path / "merge.sh")
    assert wait(cluster, array).state is JobState.FAILED
    assert wait(cluster, merge).state is JobState.CANCELLED
    assert len((tmp_path / "done").read_text(encoding="utf-8").splitlines()) == 3
    assert not (tmp_path / "merged").exists()


def test_an_array_can_be_cancelled_while_tasks_wait(cluster: Cluster, tmp_path: Path) -> None:
    slow = make_spec(tmp_path, command=("sleep", "60"), array=tuple(range(40)))
    job_id = cluster.submit(slow, script_path=tmp_path / "array.sh")
    while cluster.state(job_id).state is not JobState.RUNNING:
        time.sleep(0.05)
    cluster.cancel(job_id)
    assert wait(cluster, job_id).state is JobState.CANCELLED
