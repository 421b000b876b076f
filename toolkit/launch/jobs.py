"""The newest job of a run directory, be it a run or its rehearsal, as the run's record and the scheduler agree on it.

A record is believed where the job that the scheduler has under its number carries the run's mark, or was made from the
run's script: the same number may be somebody else's job, on another cluster or after years.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from toolkit.cluster.base import Cluster, JobState, JobStatus
from toolkit.cluster.choose import open_cluster
from toolkit.cluster.marks import owner_of
from toolkit.cluster.slurm import ANSWER_S, PATIENCE_S
from toolkit.errors import ClusterError, ToolkitError
from toolkit.launch.identity import Kin, read_config, read_identity, tell_kin
from toolkit.launch.ledger import JobRecord, find_job_record, has_ended
from toolkit.rundir import RunDir

LOOK_S = 4.0
"""How long a scheduler may take to answer somebody who only looks."""


def state_dir(root: Path) -> Path:
    """Say where emulated nodes keep their jobs: beside the runs they belong to."""
    return root.absolute() / ".cluster"


class Queue:
    """The jobs of this user, asked for when they are needed, and once for all runs.

    Args:
        root: directory of the runs.
        patience_s: how long a scheduler that does not answer is asked again, in seconds.
        answer_s: how long one of its commands may take, in seconds.
        is_shared: whether all jobs are asked for, at once; else the job that the record names, where that is enough.
    """

    def __init__(
        self, root: Path, *, patience_s: float = PATIENCE_S, answer_s: float = ANSWER_S, is_shared: bool = True
    ) -> None:
        self.is_shared = is_shared
        self._options = {"patience_s": patience_s, "answer_s": answer_s}
        self._state_dir = state_dir(root)
        self._opened: dict[str, Cluster] = {}
        self._asked: dict[str, list[JobStatus]] = {}
        self._error: ClusterError | None = None

    def open(self, scheduler: str) -> Cluster:
        """Give a scheduler, the same one each time: it keeps what need be asked once."""
        if scheduler not in self._opened:
            self._opened[scheduler] = open_cluster(scheduler, state_dir=self._state_dir, **self._options)
        return self._opened[scheduler]

    def jobs(self, scheduler: str) -> list[JobStatus]:
        """Give the jobs that a scheduler knows; one that did not answer is not asked again."""
        if self._error is not None:
            raise self._error
        if scheduler not in self._asked:
            try:
                self._asked[scheduler] = self.open(scheduler).own_jobs()
            except ClusterError as error:
                self._error = error
                raise
        return self._asked[scheduler]

    @cached_property
    def cluster_name(self) -> str:
        """Name the cluster that this machine belongs to."""
        return self.open("slurm").identify()


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The newest job of a run."""

    cluster: Cluster
    status: JobStatus
    elsewhere: str = ""
    """The cluster that it belongs to, where that is not this one; its state is not known then."""


def look_for_job(run_dir: RunDir) -> Queue:
    """Ask about one run for somebody who only looks, and does not want to wait."""
    return Queue(run_dir.root.parent, patience_s=0.0, answer_s=LOOK_S, is_shared=False)


def look_for_jobs(root: Path) -> Queue:
    """Ask about all runs of a directory for somebody who only looks."""
    return Queue(root, patience_s=0.0, answer_s=LOOK_S)


def find_job(run_dir: RunDir, queue: Queue | None = None) -> Job | None:
    """Find the newest job of a run; None: it has none, or is a copy of one that has.

    Args:
        run_dir: the run.
        queue: who is asked; None: the scheduler, with patience.

    Raises:
        ClusterError: the scheduler does not answer.
    """
    record = _find_record(run_dir)
    if record is None or tell_kin(run_dir) is Kin.COPY:
        return None
    queue = queue or Queue(run_dir.root.parent)
    cluster = queue.open(record.scheduler)
    if record.job_id and not queue.is_shared:
        status = cluster.state(record.job_id)
        is_told = status.state.is_live or has_ended(run_dir, record.job_id)
        if is_told and status.state is not JobState.UNKNOWN and _agrees(status, record, run_dir):
            return Job(cluster=cluster, status=status)
    own = [job for job in queue.jobs(record.scheduler) if _is_of_run(job, record, run_dir)]
    live = [job for job in own if job.state.is_live]
    chosen = min(live or own, key=lambda job: _rank(job, record), default=None)
    if chosen is not None:
        return Job(cluster=cluster, status=chosen)
    if not record.job_id:
        return None  # the scheduler answers, and has not taken it
    if has_ended(run_dir, record.job_id):
        return Job(cluster=cluster, status=JobStatus(job_id=record.job_id, state=JobState.UNKNOWN))
    return _ask_for(record, run_dir, queue, cluster)


def _find_record(run_dir: RunDir) -> JobRecord | None:
    """Find what is known of the newest job; of a run whose record is gone or damaged, that it may have one."""
    record = find_job_record(run_dir)
    if (record is not None and record.job_id) or read_identity(run_dir) is None:
        return record
    try:
        scheduler = read_config(run_dir).cluster.scheduler
    except ToolkitError:  # the configuration is damaged too, or was not written
        return record
    return replace(record or JobRecord(scheduler="", job_id="", attempts_before=0), scheduler=scheduler)


def job_status(run_dir: RunDir, queue: Queue | None = None) -> JobStatus | None:
    """Ask for the state of the newest job of a run."""
    job = find_job(run_dir, queue)
    return job.status if job else None


def _ask_for(record: JobRecord, run_dir: RunDir, queue: Queue, cluster: Cluster) -> Job:
    """Ask for a job that is not among those of this user: it ended long ago, is another user's, or is elsewhere."""
    unknown = JobStatus(job_id=record.job_id, state=JobState.UNKNOWN)
    if record.scheduler == "slurm" and record.cluster and queue.cluster_name != record.cluster:
        reason = f"on cluster {record.cluster}, which is not seen from here"
        return Job(cluster=cluster, status=replace(unknown, reason=reason), elsewhere=record.cluster)
    status = cluster.state(record.job_id)
    if status.state is JobState.UNKNOWN:
        return Job(cluster=cluster, status=cluster.recall(record.job_id))
    is_told = bool(status.mark or status.script)  # accounting knows neither
    if is_told and not _agrees(status, record, run_dir):
        reason = f"Slurm has another job {record.job_id} now"
        return Job(cluster=cluster, status=replace(unknown, reason=reason))
    return Job(cluster=cluster, status=status)


def _rank(job: JobStatus, record: JobRecord) -> tuple[bool, bool, int]:
    """Order the jobs of a run: the recorded one, one that runs, the newest."""
    return job.job_id != record.job_id, job.state is not JobState.RUNNING, -int(job.job_id)


def _is_of_run(job: JobStatus, record: JobRecord, run_dir: RunDir) -> bool:
    identity = read_identity(run_dir)
    if identity is not None and owner_of(job.mark) == identity.run_id:
        return True
    return job.job_id == record.job_id and _agrees(job, record, run_dir)


def _agrees(job: JobStatus, record: JobRecord, run_dir: RunDir) -> bool:
    """Whether a job of the recorded number is the recorded job; sites may replace comments."""
    if job.mark or record.mark:
        return job.mark == record.mark or (not job.mark and job.script == str(run_dir.script_path))
    # handed in by hand, and it could not be marked; a requeue submits it anew
    return record.submit_time in {None, job.submit_time} or job.restarts > 0
