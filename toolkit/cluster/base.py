"""What a scheduler is to this toolkit: a job request, a job's state, and its verbs."""

import enum
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from toolkit.cluster.accounting import Accounting
from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.partitions import Node, NodeLoad, PartitionLimits
from toolkit.config.schema import ClusterSection

ARRAY_TASK = "@ARRAY_TASK@"
"""Stands in a job's command for the index of the array's task."""

NEVER_STARTS = "DependencyNeverSatisfied"
"""Slurm's reason for a job that depends on one that failed."""

TIME_IS_UP = "TimeLimit"
"""Slurm's reason for a job whose time limit has ended it."""


class JobState(str, enum.Enum):
    """Slurm's words for the state of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
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
        return self in {JobState.PENDING, JobState.RUNNING, JobState.COMPLETING, JobState.REQUEUED}


class Fate(enum.Enum):
    """What has become of a job, as its epilogue sees it."""

    OPEN = "open"
    """The tasks ended by themselves, or were told to by a signal (a preemption begins so): the epilogue decides."""
    OUT_OF_TIME = "out of time"
    """The time limit has ended it. It can be requeued or followed up."""
    REQUEUED = "requeued"
    """It starts again without anybody doing anything: preempted, a node failed, or somebody asked for it."""
    CANCELLED = "cancelled"
    """Somebody wants it to end. A requeue would bring it back to life."""
    UNKNOWN = "unknown"
    """The scheduler has forgotten it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """A job as it is asked for; values only, so that it can be rendered and compared."""

    name: str
    command: tuple[str, ...]
    """What every task runs, started in `work_dir`; one task is one rank."""
    work_dir: Path
    log_dir: Path
    """Rank r of attempt `<job id>.<restart count>` prints to `log_dir/<attempt>/<r>.out`."""
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    """GPUs asked for on each node; 0 asks for none (ranks on CPU)."""
    cpus_per_task: int | None = None
    time_limit_s: int | None = None
    """None: it asks for no limit."""
    signal_delay_s: int = 120
    """SIGUSR2 reaches every task about this long before the time limit."""
    requeue: bool = True
    """Whether Slurm may start it again under its number; where not, the run goes on in another job."""
    partition: str | None = None
    """Several with commas: it runs in one of them."""
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    exclude: tuple[str, ...] = ()
    gpu_type: str | None = None
    mem_per_node: str | None = None
    setup: tuple[str, ...] = ()
    """Shell lines before the tasks start."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Written to the script in the clear: never a secret."""
    sbatch_extra: Mapping[str, Any] = field(default_factory=dict)
    """Flags that are added or take the place of ours; None or False takes one away."""
    srun_extra: tuple[str, ...] = ()
    dependency: str | None = None
    """Slurm's words: `afterok:7` starts the job when job 7 has COMPLETED, and cancels it when that cannot be."""
    array: tuple[int, ...] = ()
    """A job array: one task on one node for each index, independent of the others; empty: no array.

    Task i prints to `log_dir/<job id>_<i>.<restart count>/0.out`.
    """
    epilogue: tuple[str, ...] = ()
    """What runs once on the first node when the tasks have ended, whatever came of them; empty: nothing.

    Its last argument is the tasks' exit code (128 + n after signal n), its own exit code becomes the job's. It prints
    to `log_dir/<attempt>/epilogue.out`. It also runs when the job has been cancelled or requeued or is out of time,
    if its node lives; then it has only what is left of Slurm's KillWait (30 s by default), and `JobStatus.fate` says
    what has happened.
    """

    @property
    def command_line(self) -> str:
        """Write the command for bash, quoted; an array's index is looked up when the task starts."""
        return shlex.join(self.command).replace(ARRAY_TASK, '"$SLURM_ARRAY_TASK_ID"')

    @property
    def epilogue_line(self) -> str:
        """Write the epilogue for bash, quoted, without its last argument."""
        assert not (self.epilogue and self.array), "the tasks of an array end one by one: there is no end of all"
        return shlex.join(self.epilogue)


def make_spec(
    section: ClusterSection,
    *,
    name: str,
    command: tuple[str, ...],
    work_dir: Path,
    log_dir: Path,
    nodes: int,
    tasks_per_node: int,
) -> JobSpec:
    """Ask for a job without GPUs as the site wants it: account, limits, environment; replace the rest."""
    return JobSpec(
        name=name,
        command=command,
        work_dir=work_dir,
        log_dir=log_dir,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        gpus_per_node=0,
        cpus_per_task=section.cpus_per_task,
        time_limit_s=section.time_limit,
        signal_delay_s=section.signal_delay_s,
        requeue=section.requeue,
        partition=section.partition,
        account=section.account,
        qos=section.qos,
        reservation=section.reservation,
        constraint=section.constraint,
        exclude=tuple(expand_nodes(",".join(section.exclude))),
        mem_per_node=section.mem_per_node,
        setup=tuple(section.setup),
        env=section.env,
        sbatch_extra=section.sbatch_extra,
        srun_extra=tuple(section.srun_extra),
    )


def ask_for_gpus(spec: JobSpec, section: ClusterSection, partition: PartitionLimits) -> JobSpec:
    """Ask for the GPUs of a filled section where the partition, as far as the job gets it, has any."""
    assert section.gpus_per_node is not None, "cluster.gpus_per_node is not resolved"
    if not partition.gpus_per_node:
        return spec
    # by Slurm's name: one that only the planner knows (h100 for nvidia_h100_80gb) would be refused
    return replace(spec, gpus_per_node=section.gpus_per_node, gpu_type=partition.gpu_type)


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
    exit_note: str = ""
    """Which task ended first and how (`rank 3 on node2: killed by SIGKILL`); empty where unknown."""
    can_requeue: bool = True
    """Whether the scheduler would put it back into the queue when it is asked to."""
    exclude: tuple[str, ...] = ()
    """Nodes it may not use; they stay excluded over a requeue."""
    time_limit_s: float | None = None
    """None: no limit, or unknown."""

    def fate(self, *, restarts: int) -> Fate:
        """Say what has become of the attempt that began as restart number `restarts`; to be asked inside the job.

        Source: measured on Slurm 22.05. While the batch shell lives, every end shows as COMPLETING; at the limit the
        reason is TimeLimit; a requeue counts the restart at once.
        """
        if self.restarts > restarts or self.state is JobState.REQUEUED:
            return Fate.REQUEUED
        if self.state is JobState.TIMEOUT or self.reason == TIME_IS_UP:
            return Fate.OUT_OF_TIME
        if self.state is JobState.RUNNING:
            return Fate.OPEN
        return Fate.UNKNOWN if self.state is JobState.UNKNOWN else Fate.CANCELLED


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
        """Write the script to `script_path`, hand it in, return the job id."""

    def state(self, job_id: str) -> JobStatus:
        """Ask for the state of a job; UNKNOWN when the scheduler has forgotten it."""

    def follow_up(self, job_id: str, *, script_path: Path, exclude: Sequence[str]) -> str:
        """Hand the script of a job in again: a new job that starts when that one has ended, however it ended.

        May be called inside the job, and again after a failure: a job that has a follower gets no second one.

        Args:
            job_id: the job that ends.
            script_path: the script that `submit` wrote.
            exclude: nodes that the new job may not use, besides those that its script excludes.

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
