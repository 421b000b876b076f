"""What would start soonest: the cluster as it is, the nodes that are left out, and when a run would get its nodes."""

import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.cluster.base import Cluster, JobState, QueuedJob, View
from toolkit.cluster.partitions import PartitionLimits, count_in_one, find_partition
from toolkit.cluster.spec import JobSpec, ask_for_gpus, make_spec
from toolkit.cluster.view import fitting_nodes, longest_now, plan_starts
from toolkit.config.schema import ClusterSection
from toolkit.errors import ClusterError
from toolkit.launch.nodes import Exclusion, NodeLedger, choose_exclusions
from toolkit.launch.placement import fill_section, place
from toolkit.launch.start import Start, ask_start

_MOST_ASKS = 5  # each is a call that the scheduler answers under its lock
_SHORT_S = 600.0  # a gap that is no use to a run
_IN_TURN = ("Priority", "Resources", "None", "")  # Slurm's reasons for jobs that only wait until nodes are free


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """A run that is thought of, and what the cluster has for it."""

    view: View
    partition: PartitionLimits | None
    """As far as the run gets it; None: see `question`."""
    nodes: int
    time_limit_s: int | None
    starts: tuple[Start, ...]
    """Rising node counts, the last one being that of the run."""
    free_for_s: float | None
    """How long so many nodes are free from now on, where the run needs them longer; None: of no use."""
    usable: tuple[str, ...]
    """Nodes of the partition that it may use, now or later; those that it leaves out are among them."""
    unplanned_jobs: int
    """Jobs that wait for the partition and have no planned start yet: they may come first."""
    excluded: Mapping[str, Exclusion]
    """What the ledger leaves out, everywhere."""
    left_out: tuple[str, ...]
    """Of those, what this run would leave out."""
    question: str = ""
    """What must be known before it can be said when a run would start, and how to say it; empty: nothing."""

    @property
    def num_usable(self) -> int:
        """Count the nodes that the run may really get."""
        return len(set(self.usable) - set(self.left_out))


def look_ahead(section: ClusterSection, cluster: Cluster, *, root: Path, nodes: int | None) -> Outlook:
    """Look at the cluster for a run as the section asks for it.

    Args:
        section: partition, time limit, account and so on.
        cluster: the scheduler.
        root: directory of all runs, with the ledger of bad nodes.
        nodes: nodes of the run; None: all that it may use.

    Raises:
        ClusterError: the scheduler does not answer, or there is no such partition.
    """
    view = cluster.look()
    excluded = NodeLedger(root).excluded(view.time)
    if section.partition is not None:
        find_partition(view.partitions, section.partition)  # one that does not exist is a mistake, and no question
    wanted = section if nodes is None else replace(section, nodes=nodes)
    try:
        partition = place(find_partition(view.partitions, section.partition), wanted)
    except ClusterError as error:
        return _ask_back(view, excluded, wanted, question=str(error))
    filled = fill_section(wanted, partition)
    spec = _specify(filled, partition)
    offered = [node for node in fitting_nodes(view, spec) if node.is_usable]
    usable = [node.name for node in offered]
    if nodes is None:
        good = count_in_one((node for node in offered if node.name not in excluded), partition.names)
        nodes = max(1, min(good, partition.max_nodes or good))
    left_out = choose_exclusions(excluded, usable, nodes)
    spec = replace(spec, nodes=nodes, exclude=tuple(sorted({*spec.exclude, *left_out})))
    starts = _ask(cluster, [replace(spec, nodes=count) for count in _choose_counts(view, spec)], view)
    return Outlook(
        view=view,
        partition=partition,
        nodes=nodes,
        time_limit_s=filled.time_limit,
        starts=starts,
        free_for_s=_find_gap(view, spec, starts[-1]),
        usable=tuple(usable),
        unplanned_jobs=sum(_count_unplanned(job, partition.names) for job in view.jobs),
        excluded=excluded,
        left_out=left_out,
    )


def _ask_back(view: View, excluded: Mapping[str, Exclusion], section: ClusterSection, *, question: str) -> Outlook:
    """Show the cluster without an answer."""
    return Outlook(
        view=view,
        partition=None,
        nodes=section.nodes,
        time_limit_s=section.time_limit,
        starts=(),
        free_for_s=None,
        usable=(),
        unplanned_jobs=0,
        excluded=excluded,
        left_out=(),
        question=question,
    )


def _specify(section: ClusterSection, partition: PartitionLimits) -> JobSpec:
    """Write the job as `submit` would, but for what it runs: whole nodes."""
    assert section.gpus_per_node is not None, "cluster.gpus_per_node is not resolved"
    spec = make_spec(
        section,
        name="run",
        command=(sys.executable, "--version"),
        work_dir=Path.cwd(),
        log_dir=Path.cwd(),
        nodes=section.nodes,
        tasks_per_node=section.gpus_per_node,
    )
    return ask_for_gpus(spec, section, partition)


def _choose_counts(view: View, spec: JobSpec) -> list[int]:
    """Choose what to ask for: what is wanted, and fewer nodes that would start before."""
    fewer = [count for _, count in plan_starts(view, spec, preempted=()) if count < spec.nodes]
    room = _MOST_ASKS - 1
    if len(fewer) > room:  # the ends, and some between them
        fewer = [fewer[round(index * (len(fewer) - 1) / (room - 1))] for index in range(room)]
    return [*fewer, spec.nodes]


def _ask(cluster: Cluster, specs: Sequence[JobSpec], view: View) -> tuple[Start, ...]:
    with ThreadPoolExecutor(len(specs)) as threads:
        return tuple(threads.map(lambda spec: ask_start(cluster, spec, view), specs))


def _find_gap(view: View, spec: JobSpec, last: Start) -> float | None:
    if last.refusal or last.start_time == view.time:
        return None
    length_s = longest_now(view, spec)
    is_of_use = length_s is not None and _SHORT_S <= length_s < (spec.time_limit_s or math.inf)
    return length_s if is_of_use else None


def _count_unplanned(job: QueuedJob, partitions: Sequence[str]) -> int:
    """Count what Slurm's plan does not hold of a job that waits its turn: of an array all tasks but the first."""
    if job.state is not JobState.PENDING or not set(partitions) & set(job.partitions) or job.reason not in _IN_TURN:
        return 0
    return job.num_tasks - bool(job.nodes)
