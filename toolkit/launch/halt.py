"""A run that has a job: let it stand still, or keep a second job from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit import storage
from toolkit.cluster.base import Cluster, JobState
from toolkit.errors import Problem, RecordError, RefusedError, RunError
from toolkit.launch.gate.checks import JOB
from toolkit.launch.identity import original_of
from toolkit.launch.jobs import Job, Queue, find_job, job_status
from toolkit.launch.ledger import find_job_record
from toolkit.launch.prepare import find_preparation
from toolkit.rundir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Halted:
    """What was done to a run's jobs."""

    job_id: str
    state: JobState
    """What its job was doing."""
    ended: tuple[str, ...] = ()
    """Jobs before it that were cancelled with it: those that make its data, its rehearsal."""
    left: tuple[str, ...] = ()
    """Jobs that go on making its data."""


def halt(run_dir: RunDir, *, how: str) -> Halted:
    """Let a run stand still until it is submitted again.

    Args:
        run_dir: the run.
        how: `stop` lets a job that runs save first; `cancel` ends it now, and what it waits for alone.

    Raises:
        RunError: it has no job that waits or runs, or one that cannot hear.
    """
    queue = Queue(run_dir.root.parent)
    job = find_job(run_dir, queue)
    if job is None or not job.status.state.is_live:
        raise _no_job(run_dir, job)
    if how == "stop" and job.status.state is JobState.SUSPENDED:
        raise RunError(
            f"job {job.status.job_id} of run {run_dir.name} is SUSPENDED: it cannot save\n"
            "  Slurm passes no signal on to processes that it has stopped\n"
            "  wait until it runs again; or end it now, and lose the steps since its last save: "
            f"python -m toolkit cancel {run_dir.name}"
        )
    storage.write_atomic(str(run_dir.halt_path), f"{how}\n".encode())  # first: what comes after a job looks for it
    done = Halted(job_id=job.status.job_id, state=job.status.state)
    if how == "stop" and job.status.state is JobState.RUNNING:
        job.cluster.signal(job.status.job_id, "TERM")
        return done
    job.cluster.cancel(job.status.job_id)
    makers, rehearsal = _find_makers(run_dir, queue, job.cluster), _find_rehearsal(run_dir)
    is_shared = how != "cancel" or _is_waited_for(run_dir, queue)
    ended = [*([] if is_shared else makers), *rehearsal]
    for job_id in ended:
        job.cluster.cancel(job_id)
    return replace(done, ended=tuple(ended), left=tuple(makers if is_shared else ()))


def _find_makers(run_dir: RunDir, queue: Queue, cluster: Cluster) -> list[str]:
    """List the jobs that make the data of a run, the first one first."""
    record = find_job_record(run_dir)
    if record is None or record.prepared_in is None:
        return []
    return [job.job_id for job in find_preparation(Path(record.prepared_in), queue.jobs(cluster.name))]


def _is_waited_for(run_dir: RunDir, queue: Queue) -> bool:
    """Whether another run of this directory waits for the same data."""
    own = find_job_record(run_dir)
    if own is None or own.prepared_in is None:
        return False
    others = [RunDir(path) for path in run_dir.root.parent.iterdir() if path != run_dir.root]
    for other in others:
        record = find_job_record(other)
        if record is not None and record.prepared_in == own.prepared_in and _is_pending(other, queue):
            return True
    return False


def _is_pending(run_dir: RunDir, queue: Queue) -> bool:
    try:
        job = find_job(run_dir, queue)
    except RecordError:  # who cannot be asked may wait
        return True
    return job is not None and job.status.state is JobState.PENDING


def _find_rehearsal(run_dir: RunDir) -> list[str]:
    record = find_job_record(run_dir)
    status = job_status(RunDir(Path(record.rehearsed_in))) if record and record.rehearsed_in else None
    return [status.job_id] if status is not None and status.state.is_live else []


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
