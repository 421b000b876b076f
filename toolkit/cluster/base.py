"""What a scheduler is to this toolkit: a job's state, what there is, and its verbs."""

import enum
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from toolkit.cluster.accounting import Accounting
from toolkit.cluster.batchlog import PREEMPTED, find_lost_nodes
from toolkit.cluster.partitions import Node, NodeLoad, PartitionLimits
from toolkit.cluster.spec import JobSpec

NEVER_STARTS = "DependencyNeverSatisfied"
"""Slurm's reason for a job that depends on one that failed."""

TIME_IS_UP = "TimeLimit"
"""Slurm's reason for a job whose time limit has ended it."""

_NODE_DOWN = "NodeDown"  # Slurm's reason for a job that a failed node has ended


class JobState(str, enum.Enum):
    """Slurm's words for the state of a job."""

    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"  # it has its nodes, which are being started
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"  # its processes are stopped until the scheduler or an administrator wakes them
    COMPLETING = "COMPLETING"
    REQUEUED = "REQUEUED"  # pending again after a requeue
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    UNKNOWN = "UNKNOWN"  # the scheduler has forgotten the job, or does not answer

    @property
    def is_live(self) -> bool:
        """Whether the job runs or will run without anybody doing anything."""
        return self in _LIVE


_LIVE = {
    JobState.PENDING,
    JobState.CONFIGURING,
    JobState.RUNNING,
    JobState.SUSPENDED,
    JobState.COMPLETING,
    JobState.REQUEUED,
}


class Fate(enum.Enum):
    """What has become of a job, as its epilogue sees it."""

    OPEN = "open"
    """The tasks ended by themselves, or were told to by a signal (a preemption begins so): the epilogue decides."""
    OUT_OF_TIME = "out of time"
    """The time limit has ended it. It can be requeued or followed up."""
    REQUEUED = "requeued"
    """It starts again without anybody doing anything: preempted, a node failed, or somebody asked for it."""
    BROKEN_OFF = "broken off"
    """The scheduler has ended it for good, for another job or because a node failed. It can only be followed up."""
    CANCELLED = "cancelled"
    """Somebody wants it to end. A requeue would bring it back to life."""
    UNKNOWN = "unknown"
    """The scheduler has forgotten it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """A job as the scheduler knows it now. Times are Unix seconds."""

    job_id: str
    state: JobState
    reason: str = ""
    """The scheduler's word for why it waits or ended; empty where it says none."""
    nodes: tuple[str, ...] = ()
    restarts: int = 0
    submit_time: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    """When it ended, or when its time limit will end it."""
    preempt_time: float | None = None
    """When it was first told to make way for another job; None: it was not."""
    exit_note: str = ""
    """How it ended: which task ended first (`rank 3 on node2: killed by SIGKILL`), `node node2 failed`, `preempted`, or
    what the scheduler itself complained of; empty where unknown."""
    batch_log: str = ""
    """Path of what the job script and the scheduler itself have written; empty where unknown."""
    can_requeue: bool = True
    """Whether the scheduler would put it back into the queue when it is asked to."""
    exclude: tuple[str, ...] = ()
    """Nodes it may not use; they stay excluded over a requeue."""
    time_limit_s: float | None = None
    """None: no limit, or unknown."""
    mark: str = ""
    """By which it is known whose job it is: see marks.py; empty: it has none."""
    script: str = ""
    """Path of its script; empty where unknown."""

    def fate(self, *, restarts: int) -> Fate:
        """Say what has become of the attempt that began as restart number `restarts`; to be asked inside the job.

        Source: measured on Slurm 22.05. While the batch shell lives, every end shows as COMPLETING; at the limit the
        reason is TimeLimit, after a failed node NodeDown; a requeue counts the restart at once.
        """
        if self.restarts > restarts or self.state is JobState.REQUEUED:
            return Fate.REQUEUED
        if self.state is JobState.TIMEOUT or self.reason == TIME_IS_UP:
            return Fate.OUT_OF_TIME
        if self.state in {JobState.RUNNING, JobState.SUSPENDED}:
            return Fate.OPEN
        if self.state is JobState.UNKNOWN:
            return Fate.UNKNOWN
        return Fate.BROKEN_OFF if self.has_failed_node or self.is_preempted else Fate.CANCELLED

    @property
    def has_failed_node(self) -> bool:
        """Whether a node that failed has ended it, or the attempt that its log tells of."""
        return self.state is JobState.NODE_FAIL or self.reason == _NODE_DOWN or bool(find_lost_nodes(self.exit_note))

    @property
    def is_preempted(self) -> bool:
        """Whether it has to make way for another job, or had to, since it started.

        Source: measured on Slurm 22.05. PreemptTime is set when SIGTERM is sent, in a grace time, too; a cancel does
        not set it. A job that Slurm requeues has none: there the batch log alone tells.
        """
        told = self.preempt_time is not None and self.preempt_time >= (self.start_time or 0.0)
        return told or self.state is JobState.PREEMPTED or self.exit_note == PREEMPTED


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedJob:
    """A job that runs or waits. Times are Unix seconds."""

    job_id: str
    user: str
    partitions: tuple[str, ...]
    state: JobState
    reason: str
    """Why it waits; empty: it runs."""
    num_nodes: int
    num_tasks: int
    """Jobs that this line stands for: 1, or the tasks of an array that wait."""
    nodes: tuple[str, ...]
    """Nodes it runs on, or is planned on."""
    gpus_per_node: int
    priority: int
    submit_time: float | None
    start_time: float | None
    """When it started, or is planned to start; None: not planned."""
    end_time: float | None
    """When its time limit ends it, counted from that start; None: unknown."""
    time_limit_s: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """Nodes that are kept for somebody, or for maintenance. Times are Unix seconds."""

    name: str
    start_time: float
    end_time: float
    nodes: tuple[str, ...]
    partition: str = ""
    """Jobs of other ones do not get it; empty: of any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A cluster at one moment."""

    scheduler: str
    """`slurm` or `local`."""
    is_emulated: bool
    time: float
    """Unix seconds."""
    partitions: tuple[PartitionLimits, ...]
    """The default one first."""
    nodes: tuple[NodeLoad, ...]
    jobs: tuple[QueuedJob, ...]
    """Those that run, the next to end first; then those that wait, the next in the queue first."""
    reservations: tuple[Reservation, ...]
    num_jobs: int = 0
    """Jobs that the scheduler keeps, with those that ended a moment ago; not those that it does not show."""
    max_jobs: int | None = None
    """Most jobs that it keeps; None: unknown."""


class Cluster(Protocol):
    """The verbs. Every one raises ClusterError when the scheduler refuses or does not answer."""

    name: str
    """`slurm` or `local`."""

    def render(self, spec: JobSpec) -> str:
        """Write the job script; pure."""

    def check(self, spec: JobSpec) -> str:
        """Ask whether the job would be taken, submitting nothing; give what is known of its start, or nothing."""

    def submit(self, spec: JobSpec, *, script_path: Path) -> str:
        """Write the script to `script_path`, hand it in, return the job id.

        Raises:
            UndecidedError: the scheduler did not answer, and may have taken it.
        """

    def state(self, job_id: str) -> JobStatus:
        """Ask for the state of a job; UNKNOWN when the scheduler has forgotten it."""

    def recall(self, job_id: str) -> JobStatus:
        """Ask for the end of a job that the scheduler has forgotten; UNKNOWN where nobody remembers it."""

    def own_jobs(self) -> list[JobStatus]:
        """Ask once for all jobs of this user that wait, run, or ended a moment ago."""

    def identify(self) -> str:
        """Say which cluster it is; empty: it has no name."""

    def mark(self, job_id: str, mark: str) -> None:
        """Give a mark to a job that has none."""

    def follow_up(
        self, job_id: str, *, script_path: Path, exclude: Sequence[str], mark: str, pass_env: Sequence[str]
    ) -> str:
        """Hand the script of a job in again: a new job that starts when that one has ended, however it ended.

        May be called inside the job, and again after a failure: a mark is taken once.

        Args:
            job_id: the job that ends.
            script_path: the script that `submit` wrote.
            exclude: nodes that the new job may not use, besides those that its script excludes.
            mark: of the new job.
            pass_env: variables of the job that ends which the new one gets, as `JobSpec.pass_env`.

        Returns:
            The id of the new job.
        """

    def signal(self, job_id: str, name: str) -> None:
        """Send a signal (`TERM`, `USR2`) to every task of a running job, and not to its epilogue.

        Not `KILL`: Slurm takes that for a cancel.
        """

    def cancel(self, job_id: str) -> None:
        """End a job now: SIGTERM, then SIGKILL."""

    def requeue(self, job_id: str) -> None:
        """Put a running job back into the queue under the same id; what runs is ended, the caller inside it too."""

    def deadline(self, job_id: str) -> float | None:
        """When the time limit ends the running job, in Unix seconds; None: no limit, or not running."""

    def limits(self) -> list[PartitionLimits]:
        """List the partitions a user may ask for, the default one first."""

    def nodes(self, partition: str | None) -> list[Node]:
        """List the nodes of a partition; None: of the default one."""

    def look(self) -> View:
        """Read partitions, nodes, queue and reservations at once; takes no longer than a person waits."""

    def accounting(self) -> Accounting | None:
        """Read what the user's accounts and QOS allow; None: nothing is accounted here."""

    def runs_here(self, partition: str) -> bool:
        """Whether all nodes of a partition are this machine, so that they see what it sees."""


def check_signal(name: str) -> None:
    """Refuse what would not reach the tasks as a signal."""
    assert f"SIG{name}" in signal.Signals.__members__, f"there is no signal {name}"
    assert name != "KILL", "Slurm takes SIGKILL to a job for a cancel"
