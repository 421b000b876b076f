"""What Slurm says of a job, as it was recorded."""

from pathlib import Path

import pytest

from toolkit.cluster.answers import OWN_COLUMNS, parse_fields, parse_job, parse_own_jobs, parse_state, read_exit_note
from toolkit.cluster.base import Fate, JobState, JobStatus

ENDS = Path(__file__).parent / "recorded" / "ends"
SEP = "\x1f"


def read(name: str, *, note: str = "") -> JobStatus:
    return parse_job((ENDS / f"{name}.txt").read_text(encoding="utf-8"), exit_note=lambda path: note)


@pytest.mark.parametrize(
    ("name", "note", "fate", "is_preempted"),
    [
        ("preempted", "", Fate.BROKEN_OFF, True),  # PreemptMode=CANCEL, no grace
        ("grace", "", Fate.OPEN, True),  # its tasks were told, it runs on for GraceTime
        ("cancelled", "", Fate.CANCELLED, False),  # scancel
        ("node_down", "node n2 failed", Fate.BROKEN_OFF, False),  # of a job that may not be requeued
        ("node_down_requeued", "node n2 failed", Fate.REQUEUED, False),
        ("preempted_requeued", "preempted", Fate.REQUEUED, True),  # PreemptMode=REQUEUE tells no time of it
        ("preempted_ended", "", Fate.BROKEN_OFF, True),
        ("suspended", "", Fate.OPEN, False),
    ],
)
def test_an_end_tells_what_has_become_of_the_attempt(name: str, note: str, fate: Fate, is_preempted: bool) -> None:
    status = read(name, note=note)
    assert (status.fate(restarts=0), status.is_preempted) == (fate, is_preempted)


def test_a_job_that_was_preempted_before_it_started_again_can_be_cancelled() -> None:
    line = "JobId=7 JobState=COMPLETING Restarts=1 StartTime=2026-01-01T02:00:00 PreemptTime=2026-01-01T01:00:00"
    assert parse_job(line, exit_note=lambda path: "").fate(restarts=1) is Fate.CANCELLED


def test_a_suspended_job_and_one_whose_nodes_are_started_are_live_and_named_so() -> None:
    assert read("suspended").state is JobState.SUSPENDED
    assert parse_state("CONFIGURING") is JobState.CONFIGURING
    assert JobState.SUSPENDED.is_live
    assert JobState.CONFIGURING.is_live


@pytest.mark.parametrize(
    "folder", ["runs", "my runs", 'say "hi"', "it's (v2)", "100%j", "50%", "ünï", "a=b C=d", " lead", "trail ", "x;y&z"]
)
def test_a_log_is_found_whatever_its_folder_is_called(tmp_path: Path, folder: str) -> None:
    log = tmp_path / folder / "r" / "logs" / "7.batch.out"
    log.parent.mkdir(parents=True)
    log.write_text("attempt 7.0\nsrun: error: n2: task 3: Killed\n", encoding="utf-8")
    work_dir = tmp_path / folder / "r" / "code"
    told = str(log).replace("%", "%%").replace("%j", "7")  # so scontrol tells what sbatch was given with %%
    fields = f"WorkDir={work_dir} Comment=mine toolkit:abc:1  StdErr={told} StdIn=/dev/null StdOut={told} Power= "
    line = f"JobId=7 JobName=my job UserId=u(1) JobState=FAILED Reason=NonZeroExitCode Command={work_dir}/x {fields}\n"
    status = parse_job(line, exit_note=read_exit_note)
    assert (status.batch_log, status.exit_note) == (str(log), "rank 3 on n2: Killed")
    assert (status.mark, status.script) == ("toolkit:abc:1", f"{work_dir}/x")
    names = [column.partition(":")[0] for column in OWN_COLUMNS.split(",")]
    cells = {"ArrayJobID": "7", "State": "FAILED", "Comment": "toolkit:abc:1", "PreemptTime": "N/A"}
    cells["STDOUT"] = f"{str(log.parent).replace('%', '%%')}/%j.batch.out"  # squeue tells what sbatch was given
    line = "".join(f"{cells.get(name, '')}{SEP}" for name in names)
    (job,) = parse_own_jobs(line + "\n", exit_note=read_exit_note)
    assert (job.batch_log, job.exit_note) == (str(log), "rank 3 on n2: Killed")


def test_a_name_or_comment_that_looks_like_a_field_hides_none() -> None:
    line = "JobId=7 JobName=a b=c UserId=u(1) JobState=RUNNING Comment=x y=z Nodes=3 StdOut=/a b/c d.out Power="
    fields = parse_fields(line)
    assert (fields["JobName"], fields["JobState"]) == ("a b=c", "RUNNING")
    assert (fields["Comment"], fields["StdOut"]) == ("x y=z Nodes=3", "/a b/c d.out")
