"""A run that has a job: let it stand still, or keep a second job from it."""

from collections.abc import Sequence
from pathlib import Path

from toolkit import storage
from toolkit.cluster.base import Cluster, JobState
from toolkit.errors import Problem, RefusedError, RunError
from toolkit.launch.gate.checks import JOB
from toolkit.launch.identity import original_of
from toolkit.launch.jobs import Job, find_job, job_status
from toolkit.launch.ledger import find_job_record
from toolkit.rundir import RunDir


def halt(run_dir: RunDir, *, how: str) -> tuple[str, JobState]:
    """Let a run stand still until it is submitted again.

    Args:
        run_dir: the run.
        how: `stop` lets a job that runs save first; `cancel` ends it now.

    Returns:
        The job, and what it was doing.

    Raises:
        RunError: it has no job that waits or runs.
    """
    job = find_job(run_dir)
    if job is None or not job.status.state.is_live:
        raise _no_job(run_dir, job)
    storage.write_atomic(str(run_dir.halt_path), f"{how}\n".encode())  # first: what comes after a job looks for it
    if how == "stop" and job.status.state is JobState.RUNNING:
        job.cluster.signal(job.status.job_id, "TERM")
    else:
        job.cluster.cancel(job.status.job_id)
        _cancel_rehearsal(run_dir, job.cluster)
    return job.status.job_id, job.status.state


def _no_job(run_dir: RunDir, job: Job | None) -> RunError:
    """Say why there is nothing to stop."""
    name, original = run_dir.name, original_of(run_dir)
    if original is not None:
        return RunError(
            f"run {name} is a copy of {original}: it has no job of its own\n  what it tells of jobs is the original's\n"
            f"  name {original.name} with --root {original.parent}, or make it a run: python -m toolkit resume {name}"
        )
    if job is not None and job.elsewhere:
        return RunError(
            f"job {job.status.job_id} of run {name} is on cluster {job.elsewhere}\n"
            "  this machine belongs to another one, where that number means another job\n"
            f"  type the same on {job.elsewhere}"
        )
    return RunError(f"run {name} has no live job\n  `python -m toolkit status {name}` shows it")


def _cancel_rehearsal(run_dir: RunDir, cluster: Cluster) -> None:
    record = find_job_record(run_dir)
    status = job_status(RunDir(Path(record.rehearsed_in))) if record and record.rehearsed_in else None
    if status is not None and status.state.is_live:
        cluster.cancel(status.job_id)


def refuse_live(run_dir: RunDir, *, accept: Sequence[str] = ()) -> None:
    """Raise when a job of the run is waiting or running, or may be where it cannot be seen.

    Raises:
        RunError: it has a job.
        RefusedError: its job is on another cluster, and `job` is not accepted.
    """
    job = find_job(run_dir)
    if job is not None and job.status.state.is_live:
        raise RunError(
            f"run {run_dir.name} is live: job {job.status.job_id} is {job.status.state.value}\n"
            "  a run has one job at a time\n"
            f"  wait, or type: python -m toolkit cancel {run_dir.name}; another run: --name NAME"
        )
    if job is not None and job.elsewhere and JOB not in accept:
        what = f"{JOB}: job {job.status.job_id} of run {run_dir.name} is on cluster {job.elsewhere}"
        must = "whether it has ended is not seen from here, and a run has one job at a time"
        raise RefusedError([Problem(what, must, f"stop it there, or go on there; if it has ended: --accept {JOB}")])
