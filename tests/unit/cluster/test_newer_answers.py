"""What newer releases of Slurm say is read as what 22.05 says.

The answers of 24.11 and 26.05 were recorded on such sites, started from Debian's packages. It has none of 23.11, 24.05
and 25.05: here are the fields, in their order, of answers that users published in the years of these releases, with
other names and values. Nothing of the toolkit reads `--json`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm_sites import read_recorded, view_site
from toolkit.cluster.answers import parse_job, parse_jobs, parse_own_jobs, read_exit_note
from toolkit.cluster.base import JobState, JobStatus
from toolkit.cluster.commands import Said
from toolkit.cluster.inventory import read_gpus

RELEASES = ("slurm-24.11", "slurm-26.05")
"""Of both: a running job, one that waits for it, a requeued one, one that failed, a held array, a cancelled one.
There are blanks in their paths, and 26.05 repeats the words of sbatch."""


def read_jobs(release: str, *, exit_note: Callable[[Path], str] = str) -> list[JobStatus]:
    lines = read_recorded(release, "jobs.txt").splitlines()
    return [parse_jobs(line, exit_note=exit_note) for line in lines]


@pytest.mark.parametrize("release", RELEASES)
def test_a_job_is_read_whatever_its_user_wrote_into_it(release: str) -> None:
    run, waiting, again, bad, held, gone = read_jobs(release)
    assert (run.state, run.nodes, run.exclude) == (
        JobState.RUNNING, ("gpu-a01", "gpu-a02"), ("gpu-a03", "gpu-a04"),
    )  # fmt: skip
    assert (run.time_limit_s, run.can_requeue, run.reason, run.script) == (1800, True, "", "/shared/my runs/run.sbatch")
    assert run.start_time is not None
    assert run.end_time is not None
    assert run.end_time - run.start_time == 1800
    assert (waiting.state, waiting.reason, waiting.restarts) == (JobState.PENDING, "Dependency", 0)
    assert (again.state, again.reason, again.restarts) == (JobState.REQUEUED, "BeginTime", 1)
    assert (bad.state, bad.reason, bad.can_requeue) == (JobState.FAILED, "NonZeroExitCode", False)
    assert (held.state, held.reason, held.start_time) == (JobState.PENDING, "JobHeldUser", None)
    assert gone.state is JobState.CANCELLED
    assert [job.mark for job in (run, waiting, again, bad, held, gone)] == [
        "toolkit:run1:a1b2", "toolkit:run2:b", "toolkit:run3:c3", "toolkit:run4:d4", "toolkit:run5:e5",
        "toolkit:run6:f6",
    ]  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
def test_the_note_of_a_job_is_looked_for_in_its_log_however_it_is_called(release: str) -> None:
    bad = read_jobs(release)[3]
    log = f"/shared/my runs/logs/{bad.job_id}.batch.out"
    assert bad.exit_note == log
    text = read_recorded(release, "own_jobs.txt")
    own = {job.job_id: job for job in parse_own_jobs(text, exit_note=str)}
    assert own[bad.job_id].exit_note == log


@pytest.mark.parametrize("release", RELEASES)
def test_squeue_and_scontrol_say_the_same_of_a_job(release: str) -> None:
    def told(job: JobStatus) -> tuple[object, ...]:
        times = (job.submit_time, job.start_time, job.end_time, job.time_limit_s)
        return job.job_id, job.state, job.reason, job.restarts, job.nodes, job.mark, job.script, times

    text = read_recorded(release, "own_jobs.txt")
    assert [told(job) for job in parse_own_jobs(text, exit_note=str)] == [told(job) for job in read_jobs(release)]


@pytest.mark.parametrize("release", RELEASES)
def test_the_same_site_is_read_the_same_whatever_its_release(release: str) -> None:
    newer, older = view_site(release), view_site("acct")
    assert newer.partitions == older.partitions
    assert newer.nodes == older.nodes
    assert newer.max_jobs == older.max_jobs


def test_gpus_are_counted_as_23_11_and_24_05_tell_them() -> None:
    def count(gres: str) -> list[tuple[str | None, int]]:
        return [(group.type, group.count) for group in read_gpus(gres)]

    assert count("gpu:quadro_p1000:1(S:0)") == [("quadro_p1000", 1)]
    assert count("gpu:quadro_p1000:0(IDX:N/A)") == [("quadro_p1000", 0)]
    assert count("gpu:V100:3(IDX:0-1,3)") == [("V100", 3)]


def test_words_of_srun_are_found_below_those_of_a_newer_slurmstepd(tmp_path: Path) -> None:
    log = tmp_path / "10.batch.out"
    said = [
        "attempt 10.0",
        "srun: error: gpu-a02: task 1: Killed",
        "srun: error: gpu-a01: task 0: Exited with exit code 1",
        "srun: Force Terminated StepId=10.0",
        "[2026-12-01T04:46:42.085] error: *** JOB 10 ON n1 CANCELLED AT 2026-12-01T04:46:42 DUE TO JOB REQUEUE ***",
        "Terminated",
    ]
    log.write_text("\n".join(said), encoding="utf-8")
    assert read_exit_note(log) == "rank 1 on gpu-a02: Killed"


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        (1, "slurm_load_jobs error: Socket timed out on send/recv operation"),
        (1, "Unexpected message received for job 1"),  # scontrol requeue
        (1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"),
        (1, "allocation failure: Socket timed out on send/recv operation"),
        (140, "scancel: error: Kill job error on job id 1: Socket timed out on send/recv operation"),
        (1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        (1, "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"),
        (1, "slurm_load_reservations error: Unable to contact slurm controller (connect failure)"),
        (1, "sacctmgr: error: Sending PersistInit msg: Resource temporarily unavailable"),
    ],
)
def test_a_controller_that_24_11_cannot_reach_is_asked_again(code: int, complaint: str) -> None:
    assert Said(code, "", complaint).is_passing


@pytest.mark.parametrize(
    "complaint",
    [
        "slurm_load_jobs error: Invalid job id specified",
        "Job is pending execution for job 30",  # scontrol requeue
        "allocation failure: Node count specification invalid",
        "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified",
        "sbatch: error: QOSMaxWallDurationPerJobLimit\nallocation failure: Job violates accounting/QOS policy "
        "(job submit limit, user's size and/or time limits)",
    ],
)
def test_a_refusal_of_24_11_is_not_asked_again(complaint: str) -> None:
    assert not Said(1, "", complaint).is_passing


HEAD = (
    "UserId=jo(1001) GroupId=jo(1001) MCS_label=N/A Priority=1 Nice=0 Account=(null) QOS=normal JobState=RUNNING "
    "Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:01:06 "
    "TimeLimit=00:30:00 TimeMin=N/A SubmitTime=2025-09-18T16:34:50 EligibleTime=2025-09-18T16:34:50 "
    "AccrueTime=2025-09-18T16:34:50 StartTime=2025-09-18T16:34:50 EndTime=2025-09-18T17:04:50 Deadline=N/A "
    "SuspendTime=None SecsPreSuspend=0 LastSchedEval=2025-09-18T16:34:50 Scheduler=Main Partition=gpu "
    "AllocNode:Sid=login:2067 ReqNodeList=(null) ExcNodeList=n01,n0[2-3] NodeList=n4 BatchHost=n4 NumNodes=1 NumCPUs=8 "
    "NumTasks=1 CPUs/Task=8 ReqB:S:C:T=0:0:*:* ReqTRES=cpu=8,mem=10G,node=1,billing=8 "
    "AllocTRES=cpu=8,mem=10G,node=1,billing=8 Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=* MinCPUsNode=8 "
    "MinMemoryNode=10G MinTmpDiskNode=0 Features=(null) DelayBoot=00:00:00 "
)
FILES = "StdErr=/runs/x/13.err StdIn=/dev/null StdOut=/runs/x/13.out"


@pytest.mark.parametrize(
    "tail",
    [
        f"OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null) Command=x.sh WorkDir=/runs/x {FILES} Power= ",
        f"OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null) Command=x.sh WorkDir=/runs/x {FILES} "
        "TresPerNode=gres/gpu:h100:1 TresPerTask=cpu=8",
        "OverSubscribe=OK Contiguous=0 Licenses=(null) LicensesAlloc=(null) Network=(null) Command=x.sh "
        f"WorkDir=/runs/x {FILES} TresPerNode=gres/gpu:h100:1 TresPerTask=cpu=8",
        "OverSubscribe=OK Contiguous=0 Licenses=(null) LicensesAlloc=(null) Network=(null) Command=x.sh "
        f"SubmitLine=sbatch x.sh Restarts=7 EndTime=now WorkDir=/runs/x {FILES} TresPerTask=cpu=8",
    ],
    ids=["2023", "January 2025", "September 2025", "2026"],
)
def test_jobs_are_read_as_other_releases_wrote_them(tail: str) -> None:
    status = parse_job(f"JobId=13 JobName=x {HEAD}{tail}", exit_note=str)
    assert (status.job_id, status.state, status.nodes, status.exclude) == (
        "13", JobState.RUNNING, ("n4",), ("n01", "n02", "n03"),
    )  # fmt: skip
    assert (status.exit_note, status.script, status.restarts) == ("/runs/x/13.out", "x.sh", 0)
    assert status.end_time is not None
    assert status.start_time is not None
    assert status.end_time - status.start_time == 1800
