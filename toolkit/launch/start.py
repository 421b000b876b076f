"""When a job would begin, and whether the scheduler would take it at all."""

from dataclasses import dataclass

from toolkit.cluster.base import Cluster, View
from toolkit.cluster.commands import SilentError
from toolkit.cluster.spec import JobSpec
from toolkit.cluster.view import WAITS, plan_starts, read_preempted, read_start
from toolkit.errors import ClusterError, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """When a run of so many nodes would begin. Times are Unix seconds."""

    nodes: int
    start_time: float | None
    """Behind all that is planned; None: no one can say."""
    slurm_time: float | None
    """What `sbatch --test-only` says; None: nothing."""
    preempts: tuple[str, ...]
    """Jobs that would make way for it."""
    refusal: str
    """Why the scheduler would not take it; empty: it would."""


def ask_whether(cluster: Cluster, spec: JobSpec) -> tuple[str, str]:
    """Ask whether the scheduler would take a job: what it says of the start, and why it would not take it."""
    try:
        return cluster.check(spec), ""
    except SilentError:
        return "", ""  # too busy to say: what is planned stands without it
    except ClusterError as error:
        refusal = Problem.parse(str(error)).what.removeprefix(f"Slurm refused to take {spec.name}: ")
        return "", "" if WAITS in refusal else refusal  # it would be taken, and wait


def ask_start(cluster: Cluster, spec: JobSpec, view: View) -> Start:
    """Ask whether the scheduler would take a job, and reckon when it would start behind all that is planned."""
    said, refusal = ask_whether(cluster, spec)
    preempts = read_preempted(said)
    partition = spec.partition or view.partitions[0].name
    steps = plan_starts(view, partition=partition, time_s=spec.time_limit_s, exclude=spec.exclude, preempted=preempts)
    start = next((moment for moment, count in steps if count >= spec.nodes), None)
    is_closed = any(one.name == partition and not one.is_up for one in view.partitions)
    return Start(
        nodes=spec.nodes,
        start_time=None if refusal or is_closed else start,
        slurm_time=read_start(said),
        preempts=preempts,
        refusal=refusal,
    )
