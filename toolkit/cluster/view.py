"""A cluster at a glance: what Slurm's commands say of nodes and queue, and when a run would start. Pure.

`sbatch --test-only` is no measure of the start: it takes the moment at which running jobs leave room, and adds the
node hours of all that waits, divided by the nodes of the partition; so a job that Slurm would fit into a gap at once
is told to wait for hours. Here a run gets the gaps between what runs, what the scheduler has planned, and what is
reserved, as its backfill would give them. It says what Slurm would refuse or preempt, and that is asked of it.

Source: measured on Slurm 22.05; its sinfo(1), squeue(1); slurmctld/job_scheduler.c, _delayed_job_start_time().
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from itertools import groupby

from toolkit.cluster.answers import expand_nodes, is_usable, parse_partitions, parse_state, parse_time
from toolkit.cluster.base import JobState, NodeLoad, PartitionLimits, QueuedJob, Reservation, View

# wide enough that nothing is cut off; reasons come last, for they may hold a `|`
NODE_COLUMNS = (
    "Partition:64|,NodeList:64|,StateLong:24|,Gres:128|,GresUsed:192|,CPUsState:32|,Memory:16|,Time:16|,"
    "DefaultTime:16|,Available:12|,Size:24|,Timestamp:24|,UserLong:40|,Reason:256"
)
JOB_COLUMNS = "%i|%T|%P|%u|%D|%b|%Q|%V|%S|%e|%l|%N|%Y|%r"
LIVE_STATES = "PENDING,RUNNING,COMPLETING,CONFIGURING,SUSPENDED"
WAITS = "Requested node configuration is not available"
"""What `sbatch --test-only` says of a job for which nodes are down or reserved; sbatch takes it, and it waits."""

_DAY_S = 86400.0
_OVERDUE_S = 60.0  # a job past its end is being ended: KillWait and the site's epilog
_MARKS = "*~#!%$@^-+"  # what sinfo writes behind a state
_FREE = ("idle", "planned", "reserved", "powered_down")


def read_view(nodes: str, jobs: str, reservations: str, *, now: float) -> View:
    """Read what sinfo (NODE_COLUMNS), squeue (JOB_COLUMNS) and `scontrol show reservation -o` said."""
    rows = [[cell.strip() for cell in line.split("|", 13)] for line in nodes.splitlines() if line.strip()]
    queue = [_read_job(line) for line in jobs.splitlines() if line.strip()]
    return View(
        scheduler="slurm",
        is_emulated=False,
        time=now,
        partitions=tuple(_read_partitions(rows)),
        nodes=tuple(_read_nodes(rows)),
        jobs=tuple(sorted(queue, key=_queue_order)),
        reservations=tuple(filter(None, map(_read_reservation, reservations.splitlines()))),
    )


def _read_partitions(rows: Sequence[Sequence[str]]) -> list[PartitionLimits]:
    lines = [
        "|".join([row[0], row[1], row[2], row[3], row[5].split("/")[-1], row[6], row[7], row[8]])
        for row in rows
        if row[1]  # a partition without nodes has one empty line
    ]
    said = {row[0].rstrip("*"): (row[9], row[10]) for row in rows}
    found = []
    for limits in parse_partitions("\n".join(lines)):
        available, size = said[limits.name]
        most = size.rpartition("-")[2]
        found.append(replace(limits, is_up=available == "up", max_nodes=int(most) if most.isdigit() else None))
    return found


def _read_nodes(rows: Sequence[Sequence[str]]) -> list[NodeLoad]:
    labels: dict[str, list[str]] = {}
    for row in rows:
        labels.setdefault(row[1], []).append(row[0].rstrip("*"))
    first = {row[1]: row for row in reversed(rows) if row[1]}
    return [_read_node(first[name], tuple(labels[name])) for name in labels if name]


def _read_node(row: Sequence[str], partitions: tuple[str, ...]) -> NodeLoad:
    _, name, state, gres, gres_used, cpus, *_, since, by, reason = row
    used, _, _, num_cpus = (int(part) for part in cpus.split("/"))
    num_gpus, kind = _count_gpus(gres)
    gpus_used, _ = _count_gpus(gres_used)
    is_idle = state.rstrip(_MARKS) in _FREE and used == 0 and gpus_used == 0
    return NodeLoad(
        name=name,
        partitions=partitions,
        state=state,
        is_usable=is_usable(state),
        is_free=is_idle and is_usable(state),
        reason="" if reason in ("none", "None") else reason,
        reason_by="" if by == "Unknown" else re.sub(r"\(\d+\)$", "", by),
        since=_timestamp(since),
        cpus=num_cpus,
        cpus_used=used,
        gpus=num_gpus,
        gpus_used=gpus_used,
        gpu_type=kind,
    )


@cache  # thousands of nodes, and a few texts
def _count_gpus(gres: str) -> tuple[int, str | None]:
    """Read `gpu:h100:8(S:0-1),nvme:1`; several kinds are joined, and none is named where Slurm names none."""
    found = re.findall(r"(?<![\w.])gpu(?::([^:(,\s]+))??(?::(\d+))?(?=[(,\s]|$)", gres)
    kinds = dict.fromkeys(kind for kind, _ in found if kind)
    return sum(int(count or 1) for _, count in found), "+".join(kinds) or None


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
        gpus_per_node=_count_gpus(gres)[0],
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
    nodes = tuple(expand_nodes(fields.get("Nodes", "")))
    return Reservation(name=fields["ReservationName"], start_time=start, end_time=end, nodes=nodes)


def read_preempted(said: str) -> tuple[str, ...]:
    """Read which jobs would make way, from what `sbatch --test-only` said."""
    found = re.search(r"Preempts: (\S+)", said)
    return tuple(found[1].split(",")) if found else ()


def read_start(said: str) -> float | None:
    """Read the start in what `sbatch --test-only` said, in Unix seconds."""
    found = re.search(r"start at (\S+)", said)
    return _timestamp(found[1]) if found else None


def nodes_of(view: View, partition: str) -> list[NodeLoad]:
    """List the nodes of a partition."""
    return [node for node in view.nodes if partition in node.partitions]


def waiting(view: View, partition: str) -> list[QueuedJob]:
    """List the jobs that wait for a partition, the next one first."""
    return [job for job in view.jobs if job.state is JobState.PENDING and partition in job.partitions]


def plan_starts(
    view: View,
    *,
    partition: str,
    time_s: float | None,
    exclude: Collection[str],
    preempted: Collection[str],
) -> list[tuple[float, int]]:
    """Say how many whole nodes a run could get, and when, behind all that is planned.

    Args:
        view: the cluster.
        partition: the run's.
        time_s: its time limit; None: none, so it needs its nodes for ever.
        exclude: nodes that it may not use.
        preempted: jobs that would make way for it.

    Returns:
        Rising steps: (Unix seconds, nodes), each at the first moment at which so many nodes are free together for
        `time_s`. Empty: never, as far as one can see. Nodes whose jobs show no end do not count.
    """
    need_s = math.inf if time_s is None else time_s
    changes: list[tuple[float, int, int]] = []
    for start, end in _all_gaps(view, partition=partition, exclude=exclude, preempted=preempted):
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


def longest_now(view: View, *, partition: str, nodes: int, exclude: Collection[str]) -> float | None:
    """Say for how many seconds so many nodes are free from now on; None: they are not free."""
    gaps = _all_gaps(view, partition=partition, exclude=exclude, preempted=())
    lengths = sorted((end - start for start, end in gaps if start <= view.time), reverse=True)
    return lengths[nodes - 1] if len(lengths) >= nodes else None


def _all_gaps(
    view: View, *, partition: str, exclude: Collection[str], preempted: Collection[str]
) -> Iterable[tuple[float, float]]:
    """Give the times at which each node is wholly free: from when until when."""
    busy = _busy_times(view, preempted=frozenset(preempted))
    left_out = frozenset(exclude)
    for node in nodes_of(view, partition):
        if not node.is_usable or node.name in left_out:
            continue
        taken = sorted(busy.get(node.name, []))
        if not node.is_free and not any(is_held for _, _, is_held in taken):
            continue  # by jobs that are not shown to everybody: nobody knows until when
        free_from = view.time
        for start, end, _ in taken:
            if start > free_from:
                yield free_from, start
            free_from = max(free_from, end)
        if free_from < math.inf:
            yield free_from, math.inf


def _busy_times(view: View, *, preempted: frozenset[str]) -> dict[str, list[tuple[float, float, bool]]]:
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
    for reservation in view.reservations:
        for node in reservation.nodes:
            busy.setdefault(node, []).append((reservation.start_time, reservation.end_time, False))
    return busy


def shorten_nodes(names: Iterable[str]) -> str:
    """Write names in Slurm's short form: node1, node2, head -> head,node[1-2]."""
    split = [re.fullmatch(r"(.*?)(\d*)", name).groups() for name in dict.fromkeys(names)]  # type: ignore[union-attr]
    padded = {stem for stem, digits in split if digits.startswith("0")}
    numbered: dict[tuple[str, int], list[int]] = {}
    for stem, digits in split:
        width = (len(digits) if stem in padded else 0) if digits else -1
        numbered.setdefault((stem, width), []).append(int(digits or 0))
    parts = []
    for (stem, width), numbers in sorted(numbered.items()):
        if width < 0:
            parts.append(stem)
            continue
        pieces = []
        for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
            members = [number for _, number in run]
            ends = [members[0]] if len(members) == 1 else [members[0], members[-1]]
            pieces.append("-".join(f"{number:0{width}d}" for number in ends))
        inside = ",".join(pieces)
        parts.append(f"{stem}[{inside}]" if len(numbers) > 1 else f"{stem}{inside}")
    return ",".join(parts)


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
