"""What comes after an attempt: who is blamed, and that trouble of others does not end a run."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.plan.test_search import H100, config
from toolkit.cluster.base import JobState, JobStatus, Node
from toolkit.cluster.choose import OwnJob
from toolkit.cluster.local import LocalCluster
from toolkit.config.schema import ClusterSection, RunConfig
from toolkit.errors import EXIT_DONE, ClusterError
from toolkit.launch.after import After
from toolkit.launch.expected import expect, write_expected
from toolkit.launch.ledger import Attempt, Failure, begin_attempt, change_attempt, read_attempts, write_failure
from toolkit.launch.nodes import HANG, NodeLedger
from toolkit.plan.proposal import plan_of
from toolkit.rundir import RunDir

KILLED = "rank 1 on node2: Killed"


class Scheduler(LocalCluster):
    """Notes what it is asked for, and refuses what it is told to refuse."""

    def __init__(self, state_dir: Path, *, status: JobStatus, refuses: tuple[str, ...] = ()) -> None:
        super().__init__(state_dir)
        self.status = status
        self.refuses = refuses
        self.asked: list[Any] = []

    def _take(self, verb: str, *words: Any) -> None:
        if verb in self.refuses:
            raise ClusterError(f"no {verb} here")
        self.asked.append((verb, *words))

    def state(self, job_id: str) -> JobStatus:
        return self.status

    def nodes(self, partition: str | None) -> list[Node]:
        self._take("nodes")
        return [Node(name=f"node{number}", state="idle", reason="", is_usable=True) for number in range(1, 5)]

    def requeue(self, job_id: str) -> None:
        self._take("requeue")

    def follow_up(self, job_id: str, *, script_path: Path, exclude: Any, mark: str, pass_env: Any) -> str:
        assert mark.endswith(":after-7.0")  # the same for whoever asks again
        self._take("follow_up", *exclude)
        return "8"


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "runs" / "r")
    run_dir.root.mkdir(parents=True)
    nodes = ("node1", "node2")
    begin_attempt(run_dir, Attempt(attempt="7.0", job_id="7", nodes=nodes, layout="", start_time=0.0))
    return run_dir


def act(run_dir: RunDir, *, refuses: tuple[str, ...] = (), exclude: tuple[str, ...] = (), **status: Any) -> list[Any]:
    """Look after the attempt 7.0; give what the scheduler was asked for besides its nodes."""
    told = JobStatus(**{"job_id": "7", "state": JobState.RUNNING, "exit_note": KILLED, **status})
    cluster = Scheduler(run_dir.root.parent / ".cluster", status=told, refuses=refuses)
    job = OwnJob(job_id="7", attempt="7.0", cluster=cluster)
    cfg = replace(RunConfig(), cluster=ClusterSection(nodes=2, exclude=list(exclude)))
    After(run_dir=run_dir, cfg=cfg, job=job, status=told, code=1).act()
    return [asked for asked in cluster.asked if asked[0] != "nodes"]


def blamed(run_dir: RunDir) -> list[str]:
    return [event.node for event in NodeLedger(run_dir.root.parent).events()]


def hang(run_dir: RunDir, node: str) -> None:
    said = Failure(rank=0, node="node1", time=0.0, is_echo=False, error="hang: x", cause=HANG, culprits=(node,))
    write_failure(run_dir, "7.0", said)


def test_a_rank_that_is_killed_blames_its_node(run_dir: RunDir) -> None:
    assert act(run_dir) == [("requeue",)]
    assert blamed(run_dir) == ["node2"]


@pytest.mark.parametrize(
    "status",
    [
        {"state": JobState.COMPLETING, "restarts": 1},  # preempted
        {"state": JobState.COMPLETING},  # cancelled
        {"state": JobState.COMPLETING, "reason": "TimeLimit"},
    ],
)
def test_what_the_scheduler_ends_is_the_fault_of_no_node(run_dir: RunDir, status: dict[str, Any]) -> None:
    act(run_dir, **status)
    assert blamed(run_dir) == []
    assert read_attempts(run_dir)[0].outcome == "KILLED"


@pytest.mark.parametrize("grace", [False, True])
def test_a_run_whose_job_was_cancelled_for_another_one_goes_on_in_a_new_job(run_dir: RunDir, grace: bool) -> None:
    state = {"state": JobState.RUNNING, "can_requeue": False} if grace else {"state": JobState.COMPLETING}
    if grace:
        change_attempt(run_dir, "7.0", outcome="STOPPED", reason="told to end (SIGTERM)")
    assert act(run_dir, **state, start_time=10.0, preempt_time=20.0) == [("follow_up",)]
    (attempt,) = read_attempts(run_dir)
    assert (attempt.outcome, attempt.next, attempt.culprits) == ("PREEMPTED", "job 8", ())
    assert "(preempted)" in attempt.reason
    assert blamed(run_dir) == []


def test_a_preempted_run_that_its_user_stopped_stays_so(run_dir: RunDir) -> None:
    run_dir.halt_path.touch()
    assert act(run_dir, state=JobState.COMPLETING, start_time=10.0, preempt_time=20.0) == []
    assert read_attempts(run_dir)[0].next == "nothing: it was stopped"


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        ({"state": JobState.COMPLETING, "reason": "NodeDown"}, [("follow_up",)]),  # it may not be requeued
        ({"state": JobState.COMPLETING, "restarts": 1}, []),  # Slurm has requeued it
    ],
)
def test_a_node_that_fails_is_named_and_blamed_and_not_the_one_that_lost_it(
    run_dir: RunDir, status: dict[str, Any], asked: list[Any]
) -> None:
    lost = Failure(rank=0, node="node1", time=0.0, is_echo=False, error="RuntimeError: Connection closed by peer")
    write_failure(run_dir, "7.0", lost)
    assert act(run_dir, **status, exit_note="node node2 failed") == asked
    (attempt,) = read_attempts(run_dir)
    assert (attempt.outcome, attempt.reason, attempt.culprits) == ("NODE_FAIL", "node node2 failed", ("node2",))
    assert blamed(run_dir) == ["node2"]


def test_a_stop_that_kills_a_rank_at_its_start_is_the_fault_of_no_node(run_dir: RunDir) -> None:
    run_dir.halt_path.touch()
    assert act(run_dir) == []
    assert blamed(run_dir) == []


def test_a_ledger_that_cannot_be_written_does_not_end_the_run(run_dir: RunDir) -> None:
    NodeLedger(run_dir.root.parent).path.mkdir()
    assert act(run_dir) == [("requeue",)]


def test_a_measurement_that_cannot_be_kept_does_not_end_the_run(
    run_dir: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(config("parallel.stages=2", "parallel.zero_stage=1", "batch.micro_batch=1"), hardware=H100)
    write_expected(run_dir, expect(plan, device="H100", site_dir=tmp_path / "site", attempts_before=0))
    steps = [{"step": step, "attempt": "7.0", "speed/step_s": 1.0} for step in range(1, 40)]
    run_dir.metrics_path.write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    (tmp_path / "site" / "calibration.json").write_text("{", encoding="utf-8")
    assert act(run_dir) == [("requeue",)]
    assert "later plans are not corrected by this run" in caplog.text
    assert "calibration.json is damaged" in caplog.text


def test_nodes_that_cannot_be_listed_do_not_end_the_run(run_dir: RunDir) -> None:
    hang(run_dir, "node2")
    assert act(run_dir, refuses=("nodes",)) == [("requeue",)]


def test_nodes_that_are_excluded_anyway_are_none_to_spare(run_dir: RunDir) -> None:
    hang(run_dir, "node2")
    assert act(run_dir) == [("follow_up", "node2")]
    assert act(run_dir, exclude=("node3", "node4")) == [("requeue",)]


def test_where_a_requeue_is_refused_another_job_follows(run_dir: RunDir) -> None:
    assert act(run_dir, refuses=("requeue",)) == [("follow_up",)]
    assert read_attempts(run_dir)[0].next == "job 8"


def test_a_job_that_is_cancelled_meanwhile_is_not_brought_back(run_dir: RunDir) -> None:
    told = JobStatus(job_id="7", state=JobState.RUNNING)
    cluster = Scheduler(run_dir.root.parent, status=replace(told, state=JobState.COMPLETING))
    job = OwnJob(job_id="7", attempt="7.0", cluster=cluster)
    assert After(run_dir=run_dir, cfg=RunConfig(), job=job, status=told, code=1).act() == EXIT_DONE
    assert cluster.asked == []
    assert NodeLedger(run_dir.root.parent).excluded(time.time()) == {}
