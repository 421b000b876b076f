"""Verbs of the cluster, on emulated nodes and on a real Slurm: how jobs end, and what comes after."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.devcluster.sites import Site
from toolkit.cluster.base import Cluster, JobState, JobStatus
from toolkit.cluster.local import LocalCluster
from toolkit.cluster.slurm import SlurmCluster
from toolkit.cluster.spec import JobSpec
from toolkit.errors import ClusterError
from toolkit.launch.snapshot import freeze_code, name_code

# Ends at SIGTERM; the others live on.
YIELDING = "trap 'exit 3' TERM; while :; do sleep 0.1; done"
STUBBORN = "trap : TERM; while :; do sleep 0.1; done"
ONCE = '[ -z "$SLURM_RESTART_COUNT" ] || exit 0; '

# What the epilogue does: tells what it sees, then acts once.
EPILOGUE = """
import os, sys, time
from pathlib import Path
from toolkit.cluster.choose import open_cluster
verb, directory, code = sys.argv[1:]
cluster = open_cluster(os.environ["TOOLKIT_CLUSTER"], state_dir=Path(os.environ.get("TOOLKIT_LOCAL_STATE", ".")),
                       patience_s=120)
job_id = os.environ["SLURM_JOB_ID"]
log_path = Path(directory, f"epilogue-{job_id}")
line = [os.environ["TOOLKIT_ATTEMPT"], os.environ["SLURMD_NODENAME"], code]
if verb in {"look", "exit 9"}:
    status = cluster.state(job_id)
    line += [status.fate(restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0)).name]
with log_path.open("a") as log:
    log.write(" ".join(line) + "\\n")
if verb == "exit 9":
    sys.exit(9)
if verb == "requeue" and not os.environ.get("SLURM_RESTART_COUNT"):
    cluster.requeue(job_id)
    time.sleep(60)  # whoever ends first would complete the job, if the requeue did not count
if verb == "follow" and not Path(directory, "followers").exists():  # its follower is cancelled at the end
    first = cluster.follow_up(job_id, script_path=Path(directory, "job.sh"), exclude=[os.environ["SLURMD_NODENAME"]],
                              mark="toolkit:bench:after-" + job_id, pass_env=())
    again = cluster.follow_up(job_id, script_path=Path(directory, "job.sh"), exclude=[],
                              mark="toolkit:bench:after-" + job_id, pass_env=())
    Path(directory, "followers").write_text(f"{first} {again}")
"""


class Bench:
    """A cluster and a directory, and small jobs in it."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster, self.directory = cluster, directory
        self.is_slurm = cluster.name == "slurm"

    def submit(self, task: str, *, verb: str = "look", script: str = "job.sh", **fields: Any) -> str:
        words: dict[str, Any] = {"name": "verbs", "nodes": 2, "tasks_per_node": 1, "gpus_per_node": 0}
        words |= {
            "cpus_per_task": 1,
            "signal_delay_s": 1,
            "time_limit_s": 600,
            "env": {"DIRECTORY": str(self.directory)},
        }
        epilogue = (sys.executable, "-c", EPILOGUE, verb, str(self.directory)) if verb else ()
        spec = JobSpec(
            command=("bash", "-c", f'trap : USR2; echo $$ > "$DIRECTORY/pid-$SLURM_JOB_ID.$SLURM_PROCID"; {task}'),
            work_dir=name_code(self.directory / "code"),
            log_dir=self.directory / "logs",
            epilogue=epilogue,
            **{**words, **fields},
        )
        return self.cluster.submit(spec, script_path=self.directory / script)

    def wait(self, job_id: str, *, timeout_s: float = 200) -> JobStatus:
        """Wait for the end of a job."""
        return self.until(job_id, lambda status: not status.state.is_live, timeout_s=timeout_s)

    def until(self, job_id: str, holds: Callable[[JobStatus], bool], *, timeout_s: float = 100) -> JobStatus:
        deadline = time.monotonic() + timeout_s
        while not holds(status := self.cluster.state(job_id)):
            assert time.monotonic() < deadline, f"still {status}"
            time.sleep(0.1)
        return status

    def wait_for_task(self, job_id: str, rank: int = 0) -> psutil.Process:
        """Wait until a task has begun; give its process."""
        path, deadline = self.directory / f"pid-{job_id}.{rank}", time.monotonic() + 60
        while not (path.is_file() and path.read_text(encoding="utf-8").strip()):
            assert time.monotonic() < deadline, f"no {path}: {self.cluster.state(job_id)}"
            time.sleep(0.05)
        return psutil.Process(int(path.read_text(encoding="utf-8")))

    def follow_up(self, job_id: str, *, exclude: list[str]) -> str:
        mark = f"toolkit:bench:after-{job_id}"
        script_path = self.directory / "job.sh"
        return self.cluster.follow_up(job_id, script_path=script_path, exclude=exclude, mark=mark, pass_env=())

    def epilogues(self, job_id: str) -> list[list[str]]:
        """Give what the epilogues of a job saw: attempt, node, exit code, fate."""
        path = self.directory / f"epilogue-{job_id}"
        return [line.split() for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.cluster)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    freeze_code(tmp_path / "code")
    (tmp_path / "logs").mkdir()
    if request.param == "slurm":
        request.getfixturevalue("slurm")
        yield Bench(SlurmCluster(), tmp_path)
        subprocess.run(["scancel", "--name=verbs"], check=False)
        subprocess.run(["scancel", "--name=preemptor"], check=False)
    else:
        bench = Bench(LocalCluster(tmp_path / "state"), tmp_path)
        yield bench
        for job in (tmp_path / "state" / "jobs").glob("*"):
            if bench.cluster.state(job.name).state.is_live:
                bench.cluster.cancel(job.name)
                bench.wait(job.name)


# emulated nodes have no controller of all jobs, and signal the tasks alone
ON_SLURM = pytest.mark.parametrize("bench", [pytest.param("slurm", marks=pytest.mark.cluster)], indirect=True)


def test_the_epilogue_runs_after_every_end_of_the_tasks_and_decides_the_job(bench: Bench) -> None:
    ends: Mapping[str, tuple[str, str, str, JobState]] = {
        "well": ("exit 0", "look", "0", JobState.COMPLETED),
        "badly": ('exit "$((3 * SLURM_PROCID))"', "look", "3", JobState.COMPLETED),
        "killed": ('[ "$SLURM_PROCID" = 1 ] || sleep 60; kill -9 $$', "exit 9", "1", JobState.FAILED),
        "signalled": (YIELDING, "exit 9", "3", JobState.FAILED),
    }
    jobs = {
        name: bench.submit(task, verb=verb, script=f"{name}.sh", nodes=2) for name, (task, verb, *_) in ends.items()
    }
    for rank in (0, 1):
        bench.wait_for_task(jobs["signalled"], rank)
    bench.cluster.signal(jobs["signalled"], "TERM")
    for name, (_, _, code, state) in ends.items():
        status = bench.wait(jobs[name])
        assert status.state is state, (name, status)
        [(attempt, node, seen, fate)] = bench.epilogues(jobs[name])
        assert (attempt, node, fate) == (f"{jobs[name]}.0", status.nodes[0], "OPEN"), name
        assert seen in {"137", "143"} if name == "killed" else seen == code, (name, seen)
        assert (bench.directory / "logs" / attempt / "epilogue.out").read_text(encoding="utf-8") == ""
    assert "rank 1" in bench.cluster.state(jobs["killed"]).exit_note


def test_at_the_time_limit_the_epilogue_has_time_to_requeue_even_when_the_tasks_do_not_end(bench: Bench) -> None:
    limit = {"time_limit_s": 60 if bench.is_slurm else 3, "verb": "requeue"}
    jobs = [bench.submit(ONCE + task, script=f"{n}.sh", **limit) for n, task in enumerate((YIELDING, STUBBORN))]
    follow = bench.submit(ONCE + YIELDING, time_limit_s=limit["time_limit_s"])
    bench.wait_for_task(follow)
    follower = bench.follow_up(follow, exclude=["node1", "node2"])
    for job_id, codes in zip(jobs, ({"3"}, {"124", "143"}), strict=True):
        status = bench.wait(job_id)
        assert (status.state, status.restarts) == (JobState.COMPLETED, 1), status
        first, second = bench.epilogues(job_id)
        assert first[0] == f"{job_id}.0"
        assert first[2] in codes
        assert second[::2] == [f"{job_id}.1", "0"]
    status = bench.wait(follow)
    assert status.state is JobState.TIMEOUT
    assert bench.epilogues(follow)[0][2:] == ["3", "OUT_OF_TIME"]
    assert bench.until(follower, lambda status: status.state is not JobState.PENDING).nodes == ("node3", "node4")


@ON_SLURM
def test_an_epilogue_that_is_told_to_end_while_it_starts_does_its_work(bench: Bench) -> None:
    job_id = bench.submit("sleep 1")
    bench.wait_for_task(job_id).wait(60)
    while bench.cluster.state(job_id).state.is_live:
        subprocess.run(["scancel", "--full", "--signal=TERM", job_id], check=False, capture_output=True, timeout=60)
    assert bench.epilogues(job_id)[0][::2] == [f"{job_id}.0", "0"]
    assert bench.cluster.state(job_id).state is JobState.COMPLETED


def test_a_cancelled_job_is_told_from_one_that_is_out_of_time_and_a_follower_starts_after_it(bench: Bench) -> None:
    job_id = bench.submit(YIELDING, exclude=("node1",))
    bench.wait_for_task(job_id)
    assert bench.cluster.state(job_id).exclude == ("node1",)
    follower = bench.follow_up(job_id, exclude=["node2"])
    assert bench.cluster.state(follower).state is JobState.PENDING
    bench.cluster.cancel(job_id)
    assert bench.wait(job_id).state is JobState.CANCELLED
    assert bench.epilogues(job_id)[0][2:] == ["3", "CANCELLED"]
    status = bench.until(follower, lambda status: status.state is JobState.RUNNING)
    assert (status.nodes, status.exclude) == (("node3", "node4"), ("node1", "node2"))


@pytest.mark.parametrize("task", ["exit 0", "exit 4"])
def test_a_job_hands_itself_in_again_without_a_node_and_only_once(bench: Bench, task: str) -> None:
    job_id = bench.submit(f'[ "$(ls "$DIRECTORY" | grep -c followers)" = 0 ] || exec sleep 60; {task}', verb="follow")
    assert bench.wait(job_id).state is JobState.COMPLETED
    node = bench.epilogues(job_id)[0][1]
    follower, again = (bench.directory / "followers").read_text(encoding="utf-8").split()
    assert follower == again != job_id
    status = bench.until(follower, lambda status: status.state is JobState.RUNNING)
    assert node not in status.nodes
    bench.wait_for_task(follower)
    environ = psutil.Process(int((bench.directory / f"pid-{follower}.0").read_text(encoding="utf-8"))).environ()
    assert environ["TOOLKIT_ATTEMPT"] == f"{follower}.0"
    assert environ["MASTER_ADDR"] in {status.nodes[0], "127.0.0.1"}


def test_a_preempted_job_is_requeued_by_its_epilogue_within_the_grace_or_by_the_scheduler_after_it(
    bench: Bench,
) -> None:
    tasks = {"requeue": YIELDING, "look": STUBBORN}
    jobs = {
        verb: bench.submit(ONCE + task, verb=verb, script=f"{verb}.sh", partition="low" if bench.is_slurm else None)
        for verb, task in tasks.items()
    }
    for job_id in jobs.values():
        bench.wait_for_task(job_id)
        if isinstance(bench.cluster, LocalCluster):
            bench.cluster.preempt(job_id, grace_s=2)
    if bench.is_slurm:
        words = ["--name=preemptor", "--partition=main", "--nodes=4", "--exclusive", "--time=1", "--output=/dev/null"]
        subprocess.run(["sbatch", f"--job-name={words[0][7:]}", *words[1:], "--wrap", "sleep 1"], check=True)
    for verb, job_id in jobs.items():
        status = bench.wait(job_id)
        assert (status.state, status.restarts) == (JobState.COMPLETED, 1), (verb, status)
        assert bench.epilogues(job_id)[-1][:1] == [f"{job_id}.1"]
    assert bench.epilogues(jobs["requeue"])[0][2] == "3"


@ON_SLURM
def test_a_requeue_waits_for_a_controller_that_is_down(bench: Bench, slurm: Site) -> None:
    go = bench.directory / "go"
    job_id = bench.submit(f"{ONCE}while [ ! -e {go} ]; do sleep 0.1; done; exit 5", verb="requeue")
    bench.wait_for_task(job_id, 1)
    saved, started = slurm.dir / "state" / "job_state", time.time()
    deadline = time.monotonic() + 150
    while saved.stat().st_mtime <= started:  # a controller that crashes before has forgotten the job
        assert time.monotonic() < deadline, "slurmctld does not save its state"
        time.sleep(0.1)
    slurm.kill_controller()
    go.touch()
    log_path = bench.directory / "logs" / f"{job_id}.0" / "epilogue.out"
    while "trying again" not in (log_path.read_text(encoding="utf-8") if log_path.is_file() else ""):
        assert time.monotonic() < deadline, "the epilogue does not ask for the requeue"
        time.sleep(0.1)
    slurm.start_controller()
    status = bench.wait(job_id)
    assert (status.state, status.restarts) == (JobState.COMPLETED, 1)


@ON_SLURM
def test_a_silent_controller_is_given_up_after_the_patience(bench: Bench, slurm: Site) -> None:
    slurm.kill_controller()
    try:
        with pytest.raises(ClusterError, match="Unable to contact"):
            SlurmCluster(patience_s=0).nodes(None)
    finally:
        slurm.start_controller()


def test_a_job_that_may_not_be_requeued_is_known_and_refused(bench: Bench) -> None:
    job_id = bench.submit(YIELDING, requeue=False)
    bench.wait_for_task(job_id)
    assert not bench.cluster.state(job_id).can_requeue
    with pytest.raises(ClusterError, match=job_id):
        bench.cluster.requeue(job_id)
    assert bench.cluster.state(job_id).state is JobState.RUNNING


def test_exclusions_survive_a_requeue_and_a_change_of_the_time_limit_is_seen(bench: Bench) -> None:
    job_id = bench.submit(ONCE + YIELDING, verb="requeue", exclude=("node1", "node2"))
    bench.wait_for_task(job_id)
    status = bench.cluster.state(job_id)
    assert status.can_requeue
    assert status.start_time is not None
    assert bench.cluster.deadline(job_id) == pytest.approx(status.start_time + 600, abs=1.1)
    if isinstance(bench.cluster, LocalCluster):
        bench.cluster.set_time_limit(job_id, limit_s=1200)
    else:
        subprocess.run(["scontrol", "update", f"jobid={job_id}", "TimeLimit=20"], check=True)
    status = bench.until(job_id, lambda status: status.time_limit_s == 1200)
    assert bench.cluster.deadline(job_id) == pytest.approx((status.start_time or 0) + 1200, abs=1.1)
    bench.cluster.signal(job_id, "TERM")
    status = bench.wait(job_id)
    assert (status.state, status.restarts, status.exclude) == (JobState.COMPLETED, 1, ("node1", "node2"))
    assert status.nodes == ("node3", "node4")


def test_neither_a_stopped_task_nor_a_stubborn_one_keeps_the_job_from_ending(bench: Bench) -> None:
    jobs = [
        bench.submit(f'[ "$SLURM_PROCID" = 1 ] || {{ {task} }}; sleep 2; kill -9 $$', script=f"{n}.sh")
        for n, task in enumerate(("kill -STOP $$;", f"{STUBBORN};"))
    ]
    for job_id in jobs:
        bench.wait(job_id, timeout_s=60)
        assert bench.epilogues(job_id)[0][2] in {"137", "143"}
    job_id = bench.submit("kill -STOP $$")
    task = bench.wait_for_task(job_id, 1)
    bench.cluster.cancel(job_id)
    assert bench.wait(job_id, timeout_s=60).state is JobState.CANCELLED
    assert not task.is_running() or task.status() == psutil.STATUS_ZOMBIE


def test_nodes_are_listed_with_what_is_wrong_with_them(bench: Bench) -> None:
    nodes = bench.cluster.nodes(None)
    assert [node.name for node in nodes][:4] == ["node1", "node2", "node3", "node4"]
    assert all(node.is_usable for node in nodes)
    if not bench.is_slurm:
        return
    drain = ["scontrol", "update", "nodename=node4", "state=drain", "reason=fan | broken"]
    subprocess.run(drain, check=True)
    try:
        node = bench.cluster.nodes("low")[3]
        assert (node.name, node.is_usable, node.reason) == ("node4", False, "fan | broken")
        assert "drain" in node.state
    finally:
        subprocess.run(["scontrol", "update", "nodename=node4", "state=resume"], check=True)


def test_emulated_nodes_hang_go_on_and_crash(tmp_path: Path) -> None:
    freeze_code(tmp_path / "code")
    bench = Bench(LocalCluster(tmp_path / "state"), tmp_path)
    cluster = bench.cluster
    assert isinstance(cluster, LocalCluster)
    job_id = bench.submit(ONCE + YIELDING, exclude=("node2",))
    tasks = [bench.wait_for_task(job_id, rank) for rank in (0, 1)]
    assert cluster.state(job_id).nodes == ("node1", "node3")
    with pytest.raises(ClusterError, match="has no node2"):
        cluster.pause_node(job_id, 2)
    cluster.pause_node(job_id, 3)
    bench.until(job_id, lambda _: tasks[1].status() == psutil.STATUS_STOPPED)
    assert tasks[0].status() != psutil.STATUS_STOPPED
    cluster.resume_node(job_id, 3)
    bench.until(job_id, lambda _: tasks[1].status() != psutil.STATUS_STOPPED)
    os.kill(tasks[0].pid, signal.SIGCONT)
    cluster.kill_node(job_id, 3)
    status = bench.wait(job_id)
    assert (status.state, status.restarts) == (JobState.COMPLETED, 1)
    assert [line[0] for line in bench.epilogues(job_id)] == [f"{job_id}.1"]
