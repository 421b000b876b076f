"""When a job would begin, and whether the scheduler would take it at all."""

from dataclasses import dataclass

from toolkit.cluster.base import Cluster, View
from toolkit.cluster.commands import SilentError
from toolkit.cluster.partitions import find_partition
from toolkit.cluster.spec import JobSpec
from toolkit.cluster.view import (
    NOT_YET,
    WAITS,
    could_ever_start,
    find_reservation,
    plan_starts,
    read_preempted,
    read_start,
)
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


def ask_whether(cluster: Cluster, spec: JobSpec, view: View) -> tuple[str, str]:
    """Ask whether the scheduler would take a job: what it says of the start, and why it would not take it.

    Of a job that finds no nodes it says the same whether they are out of reach now or never come: what is known of
    the nodes tells it.
    """
    try:
        return cluster.check(spec), ""
    except SilentError:
        return "", ""  # too busy to say: what is planned stands without it
    except ClusterError as error:
        refusal = Problem.parse(str(error)).what.removeprefix(f"Slurm refused to take {spec.name}: ")
        reservation = find_reservation(view, spec.reservation)
        is_early = reservation is not None and reservation.start_time > view.time
        waits = (WAITS in refusal and could_ever_start(view, spec) is not False) or (is_early and NOT_YET in refusal)
        return "", "" if waits else refusal


def ask_start(cluster: Cluster, spec: JobSpec, view: View) -> Start:
    """Ask whether the scheduler would take a job, and reckon when it would start behind all that is planned."""
    said, refusal = ask_whether(cluster, spec, view)
    preempts = read_preempted(said)
    steps = plan_starts(view, spec, preempted=preempts)
    start = next((moment for moment, count in steps if count >= spec.nodes), None)
    is_closed = not find_partition(view.partitions, spec.partition).is_up
    return Start(
        nodes=spec.nodes,
        start_time=None if refusal or is_closed else start,
        slurm_time=read_start(said),
        preempts=preempts,
        refusal=refusal,
    )
