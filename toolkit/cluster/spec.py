"""A job as it is asked for: values only, so that it can be rendered and compared."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.partitions import PartitionLimits
from toolkit.config.kinds import FLAG, VARIABLE, has_break
from toolkit.config.schema import ClusterSection
from toolkit.errors import ClusterError

_FLAGS = (
    *("name", "partition", "account", "qos", "reservation", "constraint", "gpu_type", "mem_per_node", "dependency"),
    *("log_dir", "work_dir"),
)
ARRAY_TASK = "@ARRAY_TASK@"
"""Stands in a job's command for the index of the array's task."""


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
    pass_env: tuple[str, ...] = ()
    """Variables of the submitting shell that the job gets besides those of environment.py; patterns with `*`."""
    mark: str = ""
    """Written to its comment, where it is found again: see marks.py; empty: it is not looked for."""
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

    def __post_init__(self) -> None:
        """Hold what would add a line to the script, or run, when it is written into one.

        sbatch reads quotes in the script as bash does, but takes a backslash for an escape inside of them too.

        Source: Slurm, src/sbatch/opt.c, _get_argument.
        """
        flags = {name: getattr(self, name) for name in _FLAGS} | dict(self.sbatch_extra)
        flags["exclude"] = ",".join(self.exclude)
        for name, value in flags.items():
            _hold(name, str(value), not has_break(str(value)) and "\\" not in str(value), "a flag of sbatch")
        for name in self.sbatch_extra:
            _hold("sbatch_extra", name, re.fullmatch(FLAG, name), "the name of a flag")
        for name in self.env:
            _hold("env", name, re.fullmatch(VARIABLE, name), "the name of a variable")

    @property
    def command_line(self) -> str:
        """Write the command for bash, quoted; an array's index is looked up when the task starts."""
        words = ['"$SLURM_ARRAY_TASK_ID"' if word == ARRAY_TASK else shlex.quote(word) for word in self.command]
        return " ".join(words)

    @property
    def epilogue_line(self) -> str:
        """Write the epilogue for bash, quoted, without its last argument."""
        assert not (self.epilogue and self.array), "the tasks of an array end one by one: there is no end of all"
        return shlex.join(self.epilogue)


def _hold(key: str, text: str, holds: object, what: str) -> None:
    if not holds:
        raise ClusterError(f"{key}: {text!r} cannot be {what}\n  it would break the job's script\n  set another value")


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
        pass_env=tuple(section.pass_env),
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
