"""What a rehearsal came through, and what is said of one that failed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.checkpoint import layout
from toolkit.cluster.base import JobState, JobStatus
from toolkit.config.load import dump_config
from toolkit.config.schema import CheckpointSection, ClusterSection, RunConfig
from toolkit.launch.ledger import Attempt, Failure, begin_attempt, write_failure
from toolkit.launch.phases import find_gap, find_trouble, list_phases
from toolkit.rundir import RunDir

CFG = RunConfig(cluster=ClusterSection(nodes=2, gpus_per_node=2))
FIRST = Attempt(
    attempt="7.0", job_id="7", nodes=("n1", "n2"), layout="", start_time=1.0, first_step=0, last_step=4,
    outcome="REQUEUE", next="requeued",
)  # fmt: skip
LAST = replace(FIRST, attempt="7.1", first_step=4, last_step=6, outcome="FINISHED", next="nothing")
COMPLETED = JobStatus(job_id="7", state=JobState.COMPLETED, restarts=1)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "r")
    run_dir.attempt_dir("7.0").mkdir(parents=True)
    run_dir.config_path.write_text(dump_config(CFG), encoding="utf-8")
    return run_dir


def test_phases_are_told_as_far_as_they_came(run_dir: RunDir) -> None:
    assert list_phases(run_dir, CFG) == []
    begin_attempt(run_dir, replace(FIRST, outcome="RUNNING", next=""))
    assert list_phases(run_dir, CFG) == ["started: 4 ranks on 2 nodes, all connected"]
    run_dir.metrics_path.write_text(json.dumps({"step": 1, "train/loss": 5.25}) + "\n", encoding="utf-8")
    (layout.step_dir(run_dir.checkpoints_dir, step=2)).mkdir(parents=True)
    begin_attempt(run_dir, FIRST)
    begin_attempt(run_dir, LAST)
    phases = list_phases(run_dir, CFG)
    assert phases[1] == "first step done: loss 5.250"
    assert phases[-3:] == [
        "stopped after step 4 as at a time limit, saved: requeued",
        "went on from the checkpoint of step 4",
        "finished step 6",
    ]


def test_a_good_one_has_no_trouble_and_no_gap(run_dir: RunDir) -> None:
    begin_attempt(run_dir, FIRST)
    begin_attempt(run_dir, LAST)
    assert find_trouble(run_dir, COMPLETED) is None
    assert find_gap(run_dir) is None


def test_one_that_finished_without_a_stop_or_a_copy_has_a_gap(run_dir: RunDir) -> None:
    begin_attempt(run_dir, replace(LAST, first_step=0))
    gap = find_gap(run_dir)
    assert gap is not None
    assert "did not stop" in gap.what
    begin_attempt(run_dir, FIRST)
    begin_attempt(run_dir, LAST)
    mirrored = replace(CFG, checkpoint=CheckpointSection(dir="memory://copies"))
    run_dir.config_path.write_text(dump_config(mirrored), encoding="utf-8")
    gap = find_gap(run_dir)
    assert gap is not None
    assert "its checkpoint is not in memory://copies" in gap.what


def test_the_rank_that_failed_first_is_named_with_its_log(run_dir: RunDir) -> None:
    begin_attempt(run_dir, replace(FIRST, outcome="CRASHED"))
    for rank, is_echo in ((0, True), (3, False)):
        said = "no shard\n  it is gone\n  make it"
        write_failure(run_dir, "7.0", Failure(rank=rank, node=f"n{rank}", time=1.0, is_echo=is_echo, error=said))
    problem = find_trouble(run_dir, JobStatus(job_id="7", state=JobState.FAILED))
    log = run_dir.rank_log_path("7.0", rank=3)
    assert str(problem) == f"the rehearsal failed: rank 3 on n3: no shard\n  it is gone\n  make it\n  log: {log}"


def test_where_no_rank_could_speak_the_last_line_of_a_log_does(run_dir: RunDir) -> None:
    failed = JobStatus(job_id="7", state=JobState.FAILED, reason="NonZeroExitCode")
    (run_dir.logs_dir / "7.batch.out").write_text("hello\nmodul: command not found\n\n", encoding="utf-8")
    problem = find_trouble(run_dir, failed)
    assert problem is not None
    assert problem.what == "the rehearsal failed: NonZeroExitCode: modul: command not found"
    run_dir.rank_log_path("7.0", rank=2).write_text("Killed by nobody\n", encoding="utf-8")
    problem = find_trouble(run_dir, replace(failed, exit_note="rank 2 on n1: exit code 9"))
    assert problem is not None
    assert problem.what == "the rehearsal failed: rank 2 on n1: exit code 9: Killed by nobody"


def test_one_that_was_cancelled_is_not_called_a_failure(run_dir: RunDir) -> None:
    problem = find_trouble(run_dir, JobStatus(job_id="7", state=JobState.CANCELLED))
    assert problem is not None
    assert problem.what == "the rehearsal was cancelled"
