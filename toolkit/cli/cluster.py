"""The verb `cluster`: what there is, what is broken, who waits, and what would start soonest, on one screen."""

import argparse
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolkit.cli.show import print_json
from toolkit.cluster.base import JobState, QueuedJob, View
from toolkit.cluster.choose import open_cluster
from toolkit.cluster.hostlist import shorten_nodes
from toolkit.cluster.inventory import HIDDEN
from toolkit.cluster.partitions import NodeLoad, describe_gpus
from toolkit.cluster.view import nodes_of, say_duration, say_when, waiting
from toolkit.config.load import find_profile, load_config
from toolkit.launch.jobs import state_dir
from toolkit.launch.outlook import Outlook, look_ahead
from toolkit.launch.snapshot import checkout_dir
from toolkit.launch.start import Start

_PATIENCE_S = 1.0
_ANSWER_S = 5.0  # of one command: a person waits
_ROWS = 6  # of a list on the screen; JSON has all
_ROUGH_S = 600.0  # a difference that is worth a line


def add_verbs(verbs: Any) -> None:
    """Add `cluster` to the verbs of a parser."""
    text = "show partitions, free and broken nodes and the queue, and what would start soonest"
    verb = verbs.add_parser("cluster", help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(verb=_cluster)
    verb.add_argument("--nodes", type=int, metavar="N", help="nodes of the run that is meant (default: all usable)")
    verb.add_argument("--partition", metavar="P", help="partition (default: the cluster's)")
    verb.add_argument("--time", metavar="T", help="time limit of a job: 30m, 12h (default: the partition's maximum)")
    verb.add_argument("--root", type=Path, default=Path("runs"), help="directory of runs (default: %(default)s)")
    verb.add_argument("--json", action="store_true", help="print JSON, with all nodes and jobs")


def _cluster(asked: argparse.Namespace) -> None:
    configs_dir = checkout_dir() / "configs"
    profile = find_profile(os.environ, home=Path.home(), profiles_dir=configs_dir / "clusters")
    pairs = {"nodes": asked.nodes, "partition": asked.partition, "time_limit": asked.time}
    settings = [f"cluster.{key}={value}" for key, value in pairs.items() if value is not None]
    section = load_config(configs_dir / "default.yaml", overrides=settings, profile=profile).config.cluster
    cluster = open_cluster(
        section.scheduler, state_dir=state_dir(asked.root), patience_s=_PATIENCE_S, answer_s=_ANSWER_S
    )
    outlook = look_ahead(section, cluster, root=asked.root, nodes=asked.nodes)
    if asked.json:
        print_json(describe(outlook))
    else:
        print_outlook(outlook, Console(highlight=False))


def describe(outlook: Outlook) -> dict[str, Any]:
    """Give all that is known as plain values; times are Unix seconds."""
    view = outlook.view
    bare = tuple(replace(partition, nodes=()) for partition in view.partitions)  # nodes are listed once
    plain = asdict(replace(outlook, view=replace(view, partitions=bare), partition=None))
    for job in plain["view"]["jobs"]:
        job["state"] = job["state"].value
    for node, load in zip(plain["view"]["nodes"], view.nodes, strict=True):
        node |= {"gpus": load.gpus, "gpus_used": load.gpus_used, "gpu_type": load.gpu_type}
    plain["partition"] = outlook.partition.name if outlook.partition else None
    return plain


def print_outlook(outlook: Outlook, console: Console) -> None:
    """Print the cluster, then what a run could have, the last line being the answer."""
    view, name = outlook.view, outlook.partition.name if outlook.partition else None
    console.print(_headline(view), markup=False)
    if view.is_emulated:
        _print_jobs(view, name, console)
    else:
        console.print()
        console.print(_partition_table(view, name))
        _print_broken(view, console)
    _print_excluded(outlook, console)
    if not view.is_emulated:
        _print_reservations(view, console)
        _print_jobs(view, name, console)
    console.print()
    for line in _answer(outlook):
        console.print(line, style="bold" if not line.startswith(" ") else None, markup=False)


def _headline(view: View) -> str:
    if view.is_emulated:
        (limits,) = view.partitions
        memory = f"{limits.mem_per_node_mib / 1024:.0f} GiB"
        return (
            f"no Slurm here: nodes are emulated on this machine, {limits.num_nodes} at most; its "
            f"{limits.cpus_per_node} CPUs, {memory} and {limits.gpus_per_node} GPUs are shared by all of them"
        )
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(view.time))
    if any(node.state == HIDDEN for node in view.nodes):
        return f"Slurm, {when}: {len(view.nodes)} nodes; this site does not show what they do (PrivateData=nodes)"
    free, part, busy, out = _count_nodes(view.nodes)
    words = f"Slurm, {when}: {len(view.nodes)} nodes, {free} free, {part} partly used, {busy} in use, {out} out of use"
    total = sum(node.gpus for node in view.nodes)
    return f"{words}; {_free_gpus(view.nodes)} of {total} GPUs free" if total else words


def _count_nodes(nodes: Sequence[NodeLoad]) -> tuple[int, int, int, int]:
    """Count nodes that are free, partly used, in use, and out of use."""
    usable = [node for node in nodes if node.is_usable]
    free = sum(node.is_free for node in usable)
    part = sum(not node.is_free and node.state.startswith("mix") for node in usable)
    return free, part, len(usable) - free - part, len(nodes) - len(usable)


def _free_gpus(nodes: Iterable[NodeLoad]) -> int:
    return sum(node.gpus - node.gpus_used for node in nodes if node.is_usable)


def _partition_table(view: View, own: str | None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("partition", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    for name in ("nodes", "free", "part", "used", "out"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("free GPUs", no_wrap=True, justify="right")
    table.add_column("GPUs a node", overflow="ellipsis", no_wrap=True, max_width=20)
    for name in ("run", "wait"):
        table.add_column(name, justify="right", no_wrap=True)
    own_first = sorted(view.partitions, key=lambda one: one.name not in (own or "").split(","))
    for limits in own_first[: _ROWS + 2]:
        nodes = nodes_of(view, limits.name)
        total = sum(node.gpus for node in nodes)
        jobs = [job for job in view.jobs if limits.name in job.partitions]
        num_waiting = sum(job.num_tasks for job in jobs if job.state is JobState.PENDING)
        num_running = sum(job.state is not JobState.PENDING for job in jobs)
        table.add_row(
            Text(f"{limits.name}{'*' if limits.is_default else ''}{'' if limits.is_up else ' (closed)'}"),
            "none" if limits.max_time_s is None else say_duration(limits.max_time_s),
            str(len(nodes)),
            *(str(count) if limits.shows_nodes else "?" for count in _count_nodes(nodes)),
            (f"{_free_gpus(nodes) if limits.shows_nodes else '?'} of {total}") if total else "-",
            Text(describe_gpus(nodes) if limits.shows_nodes or total else "?"),
            str(num_running),
            str(num_waiting),
        )
    if len(own_first) > _ROWS + 2:
        table.add_row(f"and {len(own_first) - _ROWS - 2} more")
    return table


def _print_list(title: str, rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print rows under a title, as many as fit on a screen; the last column may take two lines."""
    if not rows:
        return
    console.print()
    console.print(title, style="underline", markup=False)
    table = Table.grid(padding=(0, 2, 0, 0))
    for index in range(len(rows[0])):
        last = index == len(rows[0]) - 1
        table.add_column(no_wrap=not last, overflow="fold" if last else "ellipsis")
    for row in rows[:_ROWS]:
        table.add_row(*map(Text, row))
    console.print(table)
    if len(rows) > _ROWS:
        console.print(f"and {len(rows) - _ROWS} more lines; --json has all", markup=False)


def _print_broken(view: View, console: Console) -> None:
    groups: dict[tuple[str, str, str], list[NodeLoad]] = {}
    for node in view.nodes:
        if not node.is_usable:
            groups.setdefault((node.state, node.reason, node.reason_by), []).append(node)
    rows = []
    for (state, reason, by), nodes in sorted(groups.items(), key=lambda group: -len(group[1])):
        since = min((node.since for node in nodes if node.since is not None), default=None)
        words = " ".join(part for part in (reason or "no reason given", f"({by})" if by else "") if part)
        names = _cut(shorten_nodes(node.name for node in nodes), 24)
        rows.append([names, str(len(nodes)), state, _clock(since), words])
    _print_list("out of use", rows, console)


def _print_excluded(outlook: Outlook, console: Console) -> None:
    ranked = sorted(outlook.excluded.values(), key=lambda one: (-one.until, one.node))
    rows = [[one.node, one.kind, f"until {_clock(one.until)}", one.reason] for one in ranked]
    _print_list("left out by this toolkit (python -m toolkit nodes)", rows, console)


def _print_reservations(view: View, console: Console) -> None:
    rows = [
        [one.name, _cut(shorten_nodes(one.nodes), 24), f"{_clock(one.start_time)} to {_clock(one.end_time)}"]
        for one in sorted(view.reservations, key=lambda one: one.start_time)
    ]
    _print_list("reserved", rows, console)


def _print_jobs(view: View, partition: str | None, console: Console) -> None:
    """Print who waits and who runs in a partition; None: in all."""
    names = set(partition.split(",") if partition else (one.name for one in view.partitions))
    ahead = waiting(view, ",".join(names))
    count = sum(job.num_tasks for job in ahead)
    num_nodes = sum(job.num_tasks * job.num_nodes for job in ahead)
    where = f" in {partition}" if partition else ""
    title = f"the queue ahead{where}: {_plural(count, 'job')} for {_plural(num_nodes, 'node')}"
    _print_list(title, [_waiting_row(job, view) for job in ahead], console)
    running = [job for job in view.jobs if job.state is not JobState.PENDING and names & set(job.partitions)]
    if running:
        shown = [f"job {job.job_id} ({_plural(job.num_nodes, 'node')}) {_ends(job, view)}" for job in running[:4]]
        more = f", and {len(running) - 4} more" if len(running) > 4 else ""
        console.print(f"\nends next: {', '.join(shown)}{more}", markup=False)


def _waiting_row(job: QueuedJob, view: View) -> list[str]:
    tasks = f"{job.num_tasks} x " if job.num_tasks > 1 else ""
    size = f"{tasks}{_plural(job.num_nodes, 'node')}"
    limit = "no limit" if job.time_limit_s is None else f"for {say_duration(job.time_limit_s)}"
    planned = "not planned" if job.start_time is None else f"planned {say_when(job.start_time, view.time)}"
    return [_cut(job.job_id, 12), _cut(job.user, 8), size, limit, planned, job.reason]


def _ends(job: QueuedJob, view: View) -> str:
    return "without an end" if job.end_time is None else say_when(job.end_time, view.time)


def _answer(outlook: Outlook) -> list[str]:
    """Say what would start soonest, and what to know about it."""
    if outlook.partition is None:
        return outlook.question.splitlines()
    view, starts, last = outlook.view, outlook.starts, outlook.starts[-1]
    limit = "no time limit" if outlook.time_limit_s is None else say_duration(outlook.time_limit_s)
    head = f"a run of {_plural(outlook.nodes, 'node')} in {outlook.partition.name} ({limit}): "
    if not outlook.partition.is_up:
        return [f"{head}partition {outlook.partition.name} is closed: jobs may be taken, none starts"]
    offers = {_offer(start, view): start.nodes for start in starts if start.start_time is not None}
    words = [f"{_plural(count, 'node')} {offer}" for offer, count in offers.items()]  # of equal ones the largest
    if last.start_time is None:
        words.append(_why_not(outlook, last))
    lines = [head + " or ".join(words), *_why_refused(last)]
    if outlook.free_for_s is not None:
        gap = f"{_whole_minutes(outlook.free_for_s)}m"
        lines.append(f"  {_plural(last.nodes, 'node')} now with --time {gap}: they are free for so long")
    needed = [node for node in outlook.excluded if node in outlook.usable and node not in outlook.left_out]
    if needed:
        lines.append(f"  uses {_cut(shorten_nodes(needed), 40)} all the same: without, there are too few nodes")
    if outlook.unplanned_jobs:
        count = _plural(outlook.unplanned_jobs, "waiting job")
        lines.append(f"  or later: {count} ahead that Slurm has not planned yet")
    rough = last.slurm_time
    if rough is not None and (last.start_time is None or abs(rough - last.start_time) > _ROUGH_S):
        said = say_when(rough, view.time)
        lines.append(f"  sbatch --test-only says {said}: it lets all that waits go first, and fills no gaps")
    return lines


def _offer(start: Start, view: View) -> str:
    assert start.start_time is not None, "an offer without a time"
    when = say_when(start.start_time, view.time)
    return f"{when} (preempts job {', '.join(start.preempts)})" if start.preempts else when


def _why_not(outlook: Outlook, last: Start) -> str:
    if last.refusal:
        return f"not {_plural(last.nodes, 'node')}"
    if last.nodes > outlook.num_usable:
        missing = _plural(last.nodes - outlook.num_usable, "node")
        verb = "comes" if last.nodes - outlook.num_usable == 1 else "come"
        return f"{_plural(last.nodes, 'node')} when {missing} {verb} back ({outlook.num_usable} can be used)"
    return f"{_plural(last.nodes, 'node')} at a time that cannot be told: what runs there shows no end"


def _why_refused(last: Start) -> list[str]:
    return [f"  Slurm refuses {_plural(last.nodes, 'node')}: {last.refusal}"] if last.refusal else []


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _whole_minutes(seconds: float) -> int:
    return math.floor(seconds / 60)


def _clock(moment: float | None) -> str:
    return "-" if moment is None else time.strftime("%m-%d %H:%M", time.localtime(moment))
