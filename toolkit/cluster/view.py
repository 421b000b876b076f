"""A cluster at a glance: what Slurm's commands say of nodes and queue, and when a run would start. Pure.

`sbatch --test-only` is no measure of the start: it takes the moment at which running jobs leave room, and adds the
node hours of all that waits, divided by the nodes of the partition; so a job that Slurm would fit into a gap at once
is told to wait for hours. Here a run gets the gaps between what runs, what the scheduler has planned, and what is
reserved, as its backfill would give them. It says what Slurm would refuse or preempt, and that is asked of it.

Source: measured on Slurm 22.05; its sinfo(1), squeue(1); slurmctld/job_scheduler.c, _delayed_job_start_time().
"""

import math
import re
from collections.abc import Collection, Iterable
from datetime import datetime
from itertools import groupby

from toolkit.cluster.answers import parse_state, parse_time
from toolkit.cluster.base import JobState, QueuedJob, Reservation, View
from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.inventory import HIDDEN, Inventory, read_gpus, read_settings
from toolkit.cluster.partitions import NodeLoad, count_in_one, read_memory
from toolkit.cluster.spec import JobSpec

JOB_COLUMNS = "%i|%T|%P|%u|%D|%b|%Q|%V|%S|%e|%l|%N|%Y|%r"
WAITS = "Requested node configuration is not available"
"""What `sbatch --test-only` says of a job for which nodes are down or reserved, which sbatch takes and lets wait, and
of one for which there are none at all, which it refuses."""
NOT_YET = "Invalid time specified"
"""What it says of a job in a reservation that has not begun; sbatch takes it, and it waits."""

_DAY_S = 86400.0
_OVERDUE_S = 60.0  # a job past its end is being ended: KillWait and the site's epilog


def read_view(
    inventory: Inventory,
    jobs: str,
    reservations: str,
    *,
    config: str,
    now: float,
) -> View:
    """Put together partitions and nodes, and what squeue (JOB_COLUMNS, all states) and scontrol said.

    Args:
        inventory: what `read_loads` gives.
        jobs: of squeue.
        reservations: `scontrol show reservation -o`.
        config: `scontrol show config`.
        now: Unix seconds.
    """
    queue = [_read_job(line) for line in jobs.splitlines() if line.strip()]
    most = read_settings(config).get("MaxJobCount", "")
    partitions, nodes = inventory
    return View(
        scheduler="slurm",
        is_emulated=False,
        time=now,
        partitions=partitions,
        nodes=nodes,
        jobs=tuple(sorted((job for job in queue if job.state.is_live), key=_queue_order)),
        reservations=tuple(filter(None, map(_read_reservation, reservations.splitlines()))),
        num_jobs=sum(job.num_tasks for job in queue),
        max_jobs=int(most) if most.isdigit() else None,
    )


def _read_job(line: str) -> QueuedJob:
    job_id, state, partitions, user, nodes, gres, priority, submitted, start, end, limit, on, planned, reason = (
        line.strip().split("|", 13)
    )
    parsed = parse_state(state)
    is_waiting = parsed is JobState.PENDING
    # one that is not planned shows when it may begin, at the earliest
    names = tuple(expand_nodes(planned if is_waiting else on))
    is_known = bool(names)
    return QueuedJob(
        job_id=job_id,
        user=user,
        partitions=tuple(partitions.split(",")),
        state=parsed,
        reason=reason if is_waiting else "",
        num_nodes=int(re.match(r"\d*", nodes)[0] or 0),  # type: ignore[index]
        num_tasks=_count_tasks(job_id),
        nodes=names,
        gpus_per_node=sum(group.count for group in read_gpus(gres)),
        priority=int(priority) if priority.isdigit() else 0,
        submit_time=_timestamp(submitted),
        start_time=_timestamp(start) if is_known else None,
        end_time=_timestamp(end) if is_known else None,
        time_limit_s=parse_time(limit),
    )


def _count_tasks(job_id: str) -> int:
    """Count the tasks in `6_[0-3,7%2]`."""
    inside = re.search(r"\[([^\]%]*)", job_id)
    if inside is None:
        return 1
    count = 0
    for piece in inside[1].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", piece)
        if found:
            count += (int(found[2] or found[1]) - int(found[1])) // int(found[3] or 1) + 1
    return max(1, count)


def _queue_order(job: QueuedJob) -> tuple[bool, float, float]:
    if job.state is not JobState.PENDING:
        return False, job.end_time or math.inf, 0.0
    return True, -job.priority, job.submit_time or 0.0


def _read_reservation(line: str) -> Reservation | None:
    fields = dict(re.findall(r"(\w+)=(\S*)", line))
    start, end = _timestamp(fields.get("StartTime")), _timestamp(fields.get("EndTime"))
    if start is None or end is None:  # "No reservations in the system"
        return None
    partition = fields.get("PartitionName", "(null)")
    return Reservation(
        name=fields["ReservationName"],
        start_time=start,
        end_time=end,
        nodes=tuple(expand_nodes(fields.get("Nodes", ""))),
        partition="" if partition == "(null)" else partition,
    )


def read_preempted(said: str) -> tuple[str, ...]:
    """Read which jobs would make way, from what `sbatch --test-only` said."""
    found = re.search(r"Preempts: (\S+)", said)
    return tuple(found[1].split(",")) if found else ()


def read_start(said: str) -> float | None:
    """Read the start in what `sbatch --test-only` said, in Unix seconds."""
    found = re.search(r"start at (\S+)", said)
    return _timestamp(found[1]) if found else None


def nodes_of(view: View, partition: str) -> list[NodeLoad]:
    """List the nodes of a partition, or of several with commas."""
    names = set(partition.split(","))
    return [node for node in view.nodes if names.intersection(node.partitions)]


def waiting(view: View, partition: str) -> list[QueuedJob]:
    """List the jobs that wait for a partition, or for one of several with commas, the next one first."""
    names = set(partition.split(","))
    return [job for job in view.jobs if job.state is JobState.PENDING and names.intersection(job.partitions)]


def find_reservation(view: View, name: str | None) -> Reservation | None:
    """Find a reservation that is shown to this user."""
    return next((one for one in view.reservations if one.name == name), None)


def fitting_nodes(view: View, spec: JobSpec) -> list[NodeLoad]:
    """List the nodes on which a part of a job could run if all of them were up and free."""
    left_out, reservation = frozenset(spec.exclude), find_reservation(view, spec.reservation)
    inside = None if reservation is None else frozenset(reservation.nodes)
    return [
        node
        for node in nodes_of(view, spec.partition or view.partitions[0].name)
        if node.name not in left_out and (inside is None or node.name in inside) and _could_run(node, spec)
    ]


def _could_run(node: NodeLoad, spec: JobSpec) -> bool:
    if node.state == HIDDEN:
        return True
    memory = read_memory(spec.mem_per_node) or 0
    return (
        (spec.gpus_per_node == 0 or node.find_group(spec.gpu_type, least=spec.gpus_per_node) is not None)
        and spec.tasks_per_node * (spec.cpus_per_task or 1) <= node.cpus
        and memory <= node.mem_mib << 20
        and node.has_features(spec.constraint)
    )


def could_ever_start(view: View, spec: JobSpec) -> bool | None:
    """Whether a job that finds no nodes waits for some that are out of reach now, or for ever; None: it is not known.

    Source: measured on Slurm 22.05: `sbatch --test-only` says WAITS in both cases, sbatch refuses the second.
    """
    nodes, names = fitting_nodes(view, spec), (spec.partition or view.partitions[0].name).split(",")
    if any(node.state == HIDDEN for node in nodes):
        return None
    end = view.time + (math.inf if spec.time_limit_s is None else spec.time_limit_s)
    others = (one for one in view.reservations if one.name != spec.reservation)
    held = {name for one in others if one.start_time < end for name in one.nodes}
    ready = [node for node in nodes if node.is_usable and node.name not in held]
    return count_in_one(nodes, names) >= spec.nodes > count_in_one(ready, names)


def plan_starts(view: View, spec: JobSpec, *, preempted: Collection[str]) -> list[tuple[float, int]]:
    """Say how many whole nodes a job could get, and when, behind all that is planned.

    Args:
        view: the cluster.
        spec: the job; how many nodes it asks for does not matter. Without a time limit it needs them for ever.
        preempted: jobs that would make way for it.

    Returns:
        Rising steps: (Unix seconds, nodes), each at the first moment at which so many nodes are free together for
        its time. Empty: never, as far as one can see. Nodes whose jobs show no end do not count.
    """
    gaps = _all_gaps(view, spec, preempted=preempted)
    found: list[tuple[float, int]] = []
    for name in (spec.partition or view.partitions[0].name).split(","):
        own = [(start, end) for node, start, end in gaps if name in node.partitions]
        found += _plan_gaps(own, need_s=math.inf if spec.time_limit_s is None else spec.time_limit_s)
    steps: list[tuple[float, int]] = []
    for moment, count in sorted(found, key=lambda step: (step[0], -step[1])):
        if not steps or count > steps[-1][1]:
            steps.append((moment, count))
    return steps


def _plan_gaps(gaps: Iterable[tuple[float, float]], *, need_s: float) -> list[tuple[float, int]]:
    changes: list[tuple[float, int, int]] = []
    for start, end in gaps:
        if end - start >= need_s:
            changes.append((start, 0, 1))
            if end < math.inf:
                changes.append((end - need_s, 1, -1))  # at that moment it still may begin: after what opens then
    steps: list[tuple[float, int]] = []
    count = most = 0
    for moment, group in groupby(sorted(changes), key=lambda change: change[:2]):
        count += sum(change for _, _, change in group)
        if count > most:
            most = count
            steps = [step for step in steps if step[0] < moment[0]] + [(moment[0], most)]
    return steps


def longest_now(view: View, spec: JobSpec) -> float | None:
    """Say for how many seconds the nodes of a job are free from now on; None: they are not free."""
    gaps = [(node, end - start) for node, start, end in _all_gaps(view, spec, preempted=()) if start <= view.time]
    found = []
    for name in (spec.partition or view.partitions[0].name).split(","):
        lengths = sorted((length for node, length in gaps if name in node.partitions), reverse=True)
        found += lengths[spec.nodes - 1 : spec.nodes]
    return max(found, default=None)


def _all_gaps(view: View, spec: JobSpec, *, preempted: Collection[str]) -> list[tuple[NodeLoad, float, float]]:
    """Give the times at which each node that the job can use is wholly free: from when until when."""
    busy = _busy_times(view, preempted=frozenset(preempted), reservation=spec.reservation)
    reservation = find_reservation(view, spec.reservation)
    first, last = (view.time, math.inf) if reservation is None else (reservation.start_time, reservation.end_time)
    found = []
    for node in fitting_nodes(view, spec):
        taken = sorted(busy.get(node.name, []))
        if not node.is_usable or (not node.is_free and not any(is_held for _, _, is_held in taken)):
            continue  # out of use, or used by jobs that are not shown to everybody: nobody knows until when
        free_from = max(view.time, first)
        for start, end, _ in [*taken, (last, math.inf, False)]:
            if min(start, last) > free_from:
                found.append((node, free_from, min(start, last)))
            free_from = max(free_from, end)
    return found


def _busy_times(
    view: View, *, preempted: frozenset[str], reservation: str | None
) -> dict[str, list[tuple[float, float, bool]]]:
    """Give for each node when it is taken: from, until, and whether by a job that holds it now."""
    busy: dict[str, list[tuple[float, float, bool]]] = {}
    for job in view.jobs:
        holds = job.state is not JobState.PENDING
        start = view.time if holds else max(view.time, job.start_time or view.time)
        end = math.inf if job.end_time is None else max(job.end_time, view.time + _OVERDUE_S)
        if job.job_id in preempted:
            end = view.time  # it still tells that the node's use is known
        for node in job.nodes:
            busy.setdefault(node, []).append((start, end, holds))
    for one in view.reservations:
        for node in one.nodes if one.name != reservation else ():
            busy.setdefault(node, []).append((one.start_time, one.end_time, False))
    return busy


def say_when(moment: float, now: float) -> str:
    """Say how far away a moment is: `now`, `in 25 min`, `in about 3 h`."""
    left_s = moment - now
    if left_s < 60:
        return "now"
    if left_s < 5400:
        return f"in {math.floor(left_s / 60)} min"
    return f"in about {left_s / 3600:.0f} h" if left_s < 2 * _DAY_S else f"in about {left_s / _DAY_S:.0f} d"


def say_duration(seconds: float) -> str:
    """Write a time: `40 s`, `45 min`, `12 h`, `2 h 50 min`, `2 d`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(math.floor(seconds / 60), 60)
    if hours >= 48:
        return f"{seconds / _DAY_S:.3g} d"
    return " ".join([f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0 or hours == 0))


def _timestamp(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:  # Unknown, N/A
        return None
