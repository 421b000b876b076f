"""The batch script, and what Slurm says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.slurm_sites import make_job
from toolkit.cluster.answers import parse_job, parse_time
from toolkit.cluster.base import Fate, JobState
from toolkit.cluster.slurm import SlurmCluster
from toolkit.cluster.spec import JobSpec

SPEC = JobSpec(
    name="pilot",
    command=("python3", "-m", "toolkit.launch.job", "/runs/my pilot"),
    work_dir=Path("/runs/my pilot/code"),
    log_dir=Path("/runs/my pilot/logs"),
    nodes=8,
    tasks_per_node=8,
    gpus_per_node=8,
    gpu_type="h100",
    cpus_per_task=12,
    time_limit_s=86_400,
    account="physics",
    partition="gpu",
    exclude=("node3", "node4"),
    setup=("module load cuda",),
    env={"NCCL_DEBUG": "WARN"},
    sbatch_extra={"exclusive": True},
    mark="toolkit:abc:1",
    epilogue=("python3", "-m", "toolkit.launch.after", "/runs/my pilot"),
)


def test_the_job_script_is_the_one_that_was_read(golden: Callable[[str, str], None]) -> None:
    golden("job.sbatch", SlurmCluster().render(SPEC))


def flags(**fields: object) -> dict[str, str]:
    script = SlurmCluster().render(make_job("gpu", **{"time_limit_s": 3600, **fields}))
    lines = [
        line.removeprefix("#SBATCH --").partition("=") for line in script.splitlines() if line.startswith("#SBATCH")
    ]
    assert len({name for name, _, _ in lines}) == len(lines), "a flag stands twice"
    return {name: value for name, _, value in lines}


def test_a_job_without_a_limit_says_so_and_does_not_get_the_default_of_its_partition() -> None:
    assert flags(time_limit_s=None)["time"] == "UNLIMITED"
    assert flags()["time"] == "60"


def test_a_reservation_and_no_requeue_stand_in_the_script() -> None:
    assert flags(reservation="course")["reservation"] == "course"
    assert "requeue" not in flags(requeue=False)
    assert "no-requeue" in flags(requeue=False)


def test_null_and_false_take_away_a_flag_of_ours() -> None:
    gone = {"gpus-per-node": None, "signal": False, "requeue": None, "cpus_per_task": None}
    left = flags(gpus_per_node=8, cpus_per_task=4, sbatch_extra=gone)
    assert not {"gpus-per-node", "signal", "requeue", "no-requeue", "cpus-per-task"} & set(left)
    assert "None" not in left.values()


def test_a_flag_of_the_user_stands_in_place_of_ours_however_it_is_written() -> None:
    assert flags(cpus_per_task=4, sbatch_extra={"cpus-per-task": 2})["cpus-per-task"] == "2"
    assert flags(sbatch_extra={"ntasks_per_node": 3})["ntasks-per-node"] == "3"
    left = flags(
        gpus_per_node=8, mem_per_node="9G", sbatch_extra={"gres": "gpu:8", "no-requeue": True, "mem-per-cpu": 1}
    )
    assert left["gres"] == "gpu:8"
    assert not {"gpus-per-node", "requeue", "mem"} & set(left)
    assert flags(gpus_per_node=8, sbatch_extra={"gres": "nvme:1"})["gpus-per-node"] == "8"


def test_a_percent_sign_in_a_path_stands_for_nothing_else() -> None:
    spec = replace(SPEC, log_dir=Path("/runs/100%j/logs"))
    lines = SlurmCluster().render(spec).splitlines()
    assert "#SBATCH --output=/runs/100%%j/logs/%j.batch.out" in lines
    assert 'mkdir -p /runs/100%j/logs/"$TOOLKIT_ATTEMPT"' in lines
    (srun,) = (line for line in lines if line.startswith("run_tasks srun"))
    assert '--output /runs/100%%j/logs/"$TOOLKIT_ATTEMPT"/%t.out' in srun


def test_many_excluded_nodes_are_one_short_line() -> None:
    assert flags(exclude=tuple(f"n{index:03d}" for index in range(600)))["exclude"] == "'n[000-599]'"


def test_a_requeued_job_is_told_from_one_that_never_ran() -> None:
    line = "JobId=7 JobName=x JobState=PENDING Reason=BeginTime Restarts=2 NodeList= StdOut=/x EndTime=Unknown"
    status = parse_job(line, exit_note=lambda path: "")
    assert (status.state, status.restarts, status.reason, status.end_time) == (JobState.REQUEUED, 2, "BeginTime", None)
    times = "StartTime=2026-01-01T00:00:00 EndTime=2026-01-01T01:00:00"
    line = f"JobId=7 JobState=RUNNING Reason=None Restarts=0 NodeList=n[1-2] {times}"
    status = parse_job(line, exit_note=lambda path: "")
    assert (status.state, status.nodes, status.reason) == (JobState.RUNNING, ("n1", "n2"), "")
    assert status.end_time is not None
    assert status.start_time is not None
    assert status.end_time - status.start_time == 3600


def test_times_without_a_limit_are_none() -> None:
    assert parse_time("infinite") is None
    assert parse_time("30:00") == 1800


def test_a_job_tells_its_epilogue_what_has_become_of_it() -> None:
    ends = {
        "JobState=RUNNING Reason=None Restarts=1": Fate.OPEN,
        "JobState=COMPLETING Reason=TimeLimit Restarts=1": Fate.OUT_OF_TIME,
        "JobState=TIMEOUT Reason=TimeLimit Restarts=1": Fate.OUT_OF_TIME,
        "JobState=COMPLETING Reason=None Restarts=2": Fate.REQUEUED,
        "JobState=PENDING Reason=BeginTime Restarts=1": Fate.REQUEUED,
        "JobState=COMPLETING Reason=None Restarts=1": Fate.CANCELLED,
        "JobState=CANCELLED Reason=None Restarts=1": Fate.CANCELLED,
    }
    for line, fate in ends.items():
        assert parse_job(line, exit_note=lambda path: "").fate(restarts=1) is fate, line


def test_what_a_job_may_do_is_read() -> None:
    line = "JobId=7 JobState=RUNNING Requeue=0 TimeLimit=1-00:00:00 ExcNodeList=n[1-2]"
    status = parse_job(line, exit_note=lambda path: "")
    assert (status.can_requeue, status.exclude, status.time_limit_s) == (False, ("n1", "n2"), 86_400)
    status = parse_job("JobId=7 JobState=RUNNING Requeue=1 TimeLimit=UNLIMITED", exit_note=lambda path: "")
    assert (status.can_requeue, status.exclude, status.time_limit_s) == (True, (), None)
