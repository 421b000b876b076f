"""The batch script, and what Slurm says."""

from collections.abc import Callable
from pathlib import Path

from toolkit.cluster.answers import expand_nodes, parse_job, parse_nodes, parse_partitions, parse_time
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


def test_node_lists_are_expanded() -> None:
    assert expand_nodes("gpu[08-10,12],head") == ["gpu08", "gpu09", "gpu10", "gpu12", "head"]
    assert expand_nodes("(null)") == []


def test_partitions_are_read_with_the_default_first() -> None:
    text = "\n".join(
        [
            "low|node1|idle|(null)|8|1000|4:00:00|30:00",
            "main*|node1|idle|gpu:h100:8(S:0-1)|8|1000|2-00:00:00|1:00:00",
            "main*|node2|down*|gpu:h100:8|4|900|2-00:00:00|1:00:00",
        ]
    )
    main, low = parse_partitions(text)
    assert (main.name, main.is_default, main.max_time_s, main.gpus_per_node, main.gpu_type) == (
        "main", True, 172_800, 8, "h100",
    )  # fmt: skip
    assert (main.num_nodes, main.nodes_usable, main.cpus_per_node) == (2, 1, 4)
    assert (low.name, low.max_time_s, low.gpus_per_node) == ("low", 14_400, 0)


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


def test_nodes_are_read_with_their_reason() -> None:
    text = "low|n1|idle|none\nmain*|n1|mixed|none\nmain*|n2|down*|Not responding\nmain*|n3|drained|fan | broken"
    assert [(node.name, node.is_usable, node.reason) for node in parse_nodes(text, partition=None)] == [
        ("n1", True, ""), ("n2", False, "Not responding"), ("n3", False, "fan | broken"),
    ]  # fmt: skip
    assert [node.name for node in parse_nodes(text, partition="low")] == ["n1"]
    assert len(parse_nodes(text, partition="main")) == 3
