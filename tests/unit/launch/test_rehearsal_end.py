"""What the job of a rehearsal on a cluster does at its end."""

import time
from pathlib import Path

import pytest

from toolkit.checkpoint import layout
from toolkit.cluster.choose import OwnJob
from toolkit.cluster.local import LocalCluster
from toolkit.config.load import dump_config
from toolkit.config.schema import CheckpointSection, RunConfig
from toolkit.launch.ledger import Attempt, JobRecord, begin_attempt, write_job_record
from toolkit.launch.nodes import HANG, NodeLedger
from toolkit.launch.rehearsed import conclude
from toolkit.rundir import RunDir


class Scheduler(LocalCluster):
    """Notes what it is told to cancel."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self.cancelled: list[str] = []

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)


@pytest.fixture
def own(tmp_path: Path) -> OwnJob:
    return OwnJob(job_id="7", attempt="7.1", cluster=Scheduler(tmp_path))


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "runs" / ".rehearsals" / "r" / "r")
    layout.step_dir(run_dir.checkpoints_dir, step=6).mkdir(parents=True)
    disk = tmp_path / "disk" / ".rehearsals" / "r"
    layout.step_dir(disk, step=6).mkdir(parents=True)
    cfg = RunConfig(checkpoint=CheckpointSection(dir=str(disk)))
    run_dir.config_path.write_text(dump_config(cfg), encoding="utf-8")
    write_job_record(run_dir, JobRecord(scheduler="local", job_id="7", attempts_before=0))
    return run_dir


def attempt(number: int, outcome: str, **fields: object) -> Attempt:
    return Attempt(
        attempt=f"7.{number}", job_id="7", nodes=("n1",), layout="", start_time=1.0, first_step=4 * number,
        outcome=outcome, **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_good_one_lets_the_run_start_and_deletes_its_checkpoints(run_dir: RunDir, own: OwnJob) -> None:
    begin_attempt(run_dir, attempt(0, "REQUEUE"))
    begin_attempt(run_dir, attempt(1, "FINISHED"))
    assert conclude(run_dir, 0, own) == 0
    assert not run_dir.checkpoints_dir.exists()
    assert list((run_dir.root.parents[3] / "disk").iterdir()) == []


def test_one_that_did_not_go_on_from_a_checkpoint_keeps_the_run_from_starting(run_dir: RunDir, own: OwnJob) -> None:
    begin_attempt(run_dir, attempt(0, "FINISHED"))
    assert conclude(run_dir, 0, own) == 1


def test_a_bad_node_is_left_out_of_the_run_too_and_nothing_goes_on_without_it(run_dir: RunDir, own: OwnJob) -> None:
    begin_attempt(run_dir, attempt(0, "CRASHED", culprits=("n1",), cause=HANG, reason="it hung"))
    write_job_record(run_dir, JobRecord(scheduler="local", job_id="8", attempts_before=0))
    assert conclude(run_dir, 75, own) == 75
    assert isinstance(own.cluster, Scheduler)
    assert own.cluster.cancelled == ["8"]
    assert NodeLedger(run_dir.root.parents[2]).excluded(time.time())["n1"].reason == "it hung"


def test_the_run_does_not_start_when_another_job_goes_on_with_its_rehearsal(run_dir: RunDir, own: OwnJob) -> None:
    begin_attempt(run_dir, attempt(0, "REQUEUE", next="job 8"))
    write_job_record(run_dir, JobRecord(scheduler="local", job_id="8", attempts_before=0))
    assert conclude(run_dir, 0, own) == 1
    assert isinstance(own.cluster, Scheduler)
    assert own.cluster.cancelled == ["8"]


def test_the_run_does_not_start_when_its_rehearsal_was_stopped(run_dir: RunDir, own: OwnJob) -> None:
    begin_attempt(run_dir, attempt(0, "STOPPED", next="nothing: it was stopped"))
    assert conclude(run_dir, 0, own) == 1


def test_a_rehearsal_that_is_requeued_has_not_ended(run_dir: RunDir, own: OwnJob) -> None:
    begin_attempt(run_dir, attempt(0, "REQUEUE", next="requeued"))
    assert conclude(run_dir, 0, own) == 0
    assert run_dir.checkpoints_dir.exists()


def test_a_ledger_that_cannot_be_written_does_not_keep_the_run_from_starting(run_dir: RunDir, own: OwnJob) -> None:
    begin_attempt(run_dir, attempt(0, "REQUEUE", culprits=("n1",), cause=HANG, next="requeued"))
    begin_attempt(run_dir, attempt(1, "FINISHED"))
    (run_dir.root.parents[2] / "nodes.jsonl").mkdir()
    assert conclude(run_dir, 0, own) == 0
