"""What is said of a run that went wrong."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from toolkit.cli.trouble import print_trouble
from toolkit.rundir import RunDir

GRES = "srun: error: Unable to create step for job 7: Invalid generic resource (gres) specification"


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "my runs" / "r")
    run_dir.attempt_dir("7.1").mkdir(parents=True)
    return run_dir


def said(run_dir: RunDir, capsys: pytest.CaptureFixture[str], *, note: str = "", **fields: Any) -> str:
    job = {"job_id": "7", "state": "FAILED", "reason": "", "restarts": 1, "exit_note": note, "batch_log": ""}
    job |= fields.pop("job", {})
    attempt = {"attempt": "7.1", "job_id": "7", "next": ""}
    run = {"job": job, "state": "KILLED", "rehearsal": None, "prepared_in": None, "failures": [], "attempts": [attempt]}
    print_trouble(run_dir, {**run, **fields}, Console(soft_wrap=True, highlight=False))
    return capsys.readouterr().out


def test_slurms_own_words_are_shown_with_the_place_where_they_stand(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    log = run_dir.batch_log_path("7")
    log.write_text(f"attempt 7.0\nsrun: error: of a former attempt\nattempt 7.1\n{GRES}\n", encoding="utf-8")
    assert said(run_dir, capsys, note=GRES) == f"its end: {GRES}\nSlurm says in {log}:\n  {GRES}\n"


def test_a_script_that_failed_before_its_ranks_shows_the_end_of_its_log(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    log = run_dir.root / "slurm-7.out"
    log.write_bytes(b"hello\n/var/spool/slurm_script: line 12: modul\xe9: command not found\n")
    shown = said(run_dir, capsys, job={"batch_log": str(log)}, attempts=[])
    assert shown.splitlines()[0] == f"last lines of {log}:"
    assert shown.splitlines()[-1].endswith("command not found")


def test_a_rank_that_ended_first_is_named_and_its_log_shown(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir.rank_log_path("7.1", rank=3).write_text("step 1\n", encoding="utf-8")
    # a scheduler that has forgotten the job does not know how often it was started
    shown = said(run_dir, capsys, note="rank 3 on n2: Killed", job={"state": "UNKNOWN", "restarts": 0})
    assert shown == f"ended by rank 3 on n2: Killed\nlast lines of {run_dir.rank_log_path('7.1', rank=3)}:\n  step 1\n"


def test_a_failed_node_is_named(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(run_dir, capsys, note="node n2 failed") == "its end: node n2 failed\n"


@pytest.mark.parametrize(
    "fields",
    [
        {"job": {"state": "SUSPENDED"}},
        {"job": {"state": "CONFIGURING"}},
        {"job": {"state": "UNKNOWN"}, "state": "FINISHED"},  # the scheduler has forgotten it
        {
            "job": {"state": "UNKNOWN"},
            "attempts": [{"attempt": "7.1", "job_id": "7", "next": "nothing: it was stopped"}],
        },
    ],
)
def test_a_run_that_goes_on_or_came_to_its_end_has_no_trouble(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    run_dir.rank_log_path("7.1", rank=0).write_text("step 1\n", encoding="utf-8")
    assert said(run_dir, capsys, **fields) == ""
