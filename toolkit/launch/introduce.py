"""What the first rank of a job does before it trains: tell the run which job it has now.

The job alone knows for certain who it is: sbatch's answer may have been lost, a person may have handed it in with
sbatch/train.sbatch, and the directory may have been moved or copied meanwhile. No torch.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from toolkit.cluster.base import JobState, JobStatus
from toolkit.cluster.choose import OwnJob, read_own_job
from toolkit.cluster.marks import new_mark, owner_of
from toolkit.config.schema import RunConfig
from toolkit.errors import ClusterError, RunError
from toolkit.launch.identity import read_config, refuse_shared_checkpoints, settle
from toolkit.launch.ledger import JobRecord, find_job_record, read_attempts, write_job_record
from toolkit.rundir import RunDir

log = logging.getLogger(__name__)

_ANSWER_S = 10.0


def introduce(run_dir: RunDir, environ: Mapping[str, str]) -> None:
    """Write the record of the job that this process belongs to.

    Raises:
        RunError: the job has another size than the run's layout, another job of the run is running, or the directory is
            a copy that would save over the original.
    """
    own = read_own_job(environ, patience_s=0.0, answer_s=_ANSWER_S)
    cfg = read_config(run_dir)
    _refuse_other_size(run_dir, cfg, environ)
    refuse_shared_checkpoints(run_dir, cfg)
    run_id = settle(run_dir).run_id
    try:
        jobs = own.cluster.own_jobs()
    except ClusterError as error:  # the record as it was submitted is good enough
        log.warning("the scheduler does not answer: %s", str(error).splitlines()[0])
        jobs = []
    mine = next((job for job in jobs if job.job_id == own.job_id), JobStatus(job_id=own.job_id, state=JobState.UNKNOWN))
    known = find_job_record(run_dir)
    is_ours = owner_of(mine.mark) == run_id or (known is not None and known.job_id == own.job_id)
    _refuse_second(run_dir, mine, [job for job in jobs if owner_of(job.mark) == run_id and job.job_id != own.job_id])
    record = known if is_ours and known else _by_hand(run_dir, own)
    mark = mine.mark or (record.mark if is_ours else _mark(own, run_id))
    cluster = environ.get("SLURM_CLUSTER_NAME", "") if own.cluster.name == "slurm" else ""
    told = replace(record, job_id=own.job_id, mark=mark, cluster=cluster, submit_time=mine.submit_time)
    write_job_record(run_dir, told)


def _refuse_other_size(run_dir: RunDir, cfg: RunConfig, environ: Mapping[str, str]) -> None:
    """Raise where a job that was handed in by hand has not the ranks of the run's layout."""
    num_tasks, num_nodes = int(environ["SLURM_NTASKS"]), int(environ.get("SLURM_JOB_NUM_NODES") or 1)
    nodes, each = cfg.cluster.nodes, cfg.cluster.gpus_per_node or 1
    if num_tasks != cfg.world_size:
        raise RunError(
            f"job {environ['SLURM_JOB_ID']} has {num_tasks} tasks on {num_nodes} nodes, "
            f"run {run_dir.name} was planned for {nodes} nodes x {each}\n"
            "  another number of ranks needs another layout\n"
            f"  python -m toolkit resume {run_dir.name} --nodes {num_nodes} makes one; "
            f"or sbatch --nodes {nodes} --ntasks-per-node {each} sbatch/train.sbatch"
        )


def _refuse_second(run_dir: RunDir, mine: JobStatus, others: list[JobStatus]) -> None:
    """Keep two jobs from writing one run: the one that runs already, or will when it is woken, stays."""
    running = next((job for job in others if job.state in {JobState.RUNNING, JobState.SUSPENDED}), None)
    if running is not None:
        raise RunError(
            f"run {run_dir.name} has job {running.job_id}, which is {running.state.value}\n"
            f"  a run has one job at a time: job {mine.job_id} ends here\n"
            f"  stop the other first: python -m toolkit stop {run_dir.name}"
        )


def _by_hand(run_dir: RunDir, own: OwnJob) -> JobRecord:
    attempts = read_attempts(run_dir)
    before = sum(one.job_id != own.job_id for one in attempts)
    return JobRecord(scheduler=own.cluster.name, job_id=own.job_id, attempts_before=before)


def _mark(own: OwnJob, run_id: str) -> str:
    """Give a job that was handed in by hand a mark, where the site lets users change comments."""
    mark = new_mark(run_id)
    try:
        own.cluster.mark(own.job_id, mark)
    except ClusterError as error:
        log.warning("this job has no mark; it is known by its time of submission: %s", str(error).splitlines()[0])
        return ""
    return mark
