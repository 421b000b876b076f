"""What the scheduler has for the job: its partition, free GPUs of the right kind, and when it would start."""

import math
from collections.abc import Sequence

from toolkit.cluster.base import View
from toolkit.cluster.partitions import NodeLoad, PartitionLimits, count_in_one, describe_gpus, find_partition
from toolkit.cluster.view import WAITS, find_reservation, fitting_nodes, say_duration, say_when, waiting
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding, note, ok, refuse, warn
from toolkit.launch.gate.handed_in import count_jobs
from toolkit.launch.gate.host import count_cpus
from toolkit.launch.placement import match_type
from toolkit.launch.start import Start, ask_start

_ROUGH_S = 600.0  # a difference that is worth a word
_KEYS = {
    "requeue": "cluster.requeue=false",
    "mem": "cluster.mem_per_node",
    "gres": 'cluster.sbatch_extra={gres: "gpu:N", gpus-per-node: null}',
    "gpu": "cluster.gpus_per_node, cluster.gpu_type",
    "account": "cluster.account",
    "qos": "cluster.qos",
    "time": "cluster.time_limit",
    "partition": "cluster.partition",
    "node count": "--nodes",
    "feature": "cluster.constraint",
    "constraint": "cluster.constraint",
    "reservation": "cluster.reservation",
}
"""Words of a refusal, and the keys that have to do with it."""


def check_scheduler(context: Context) -> list[Finding]:
    """Look at `partition`, `gpus` and `start`."""
    if context.is_emulated:
        return []
    view = context.cluster.look()
    limits = find_partition(view.partitions, context.partition.name)
    usable = [node for node in fitting_nodes(view, context.spec) if node.is_usable]
    return [
        *_check_partition(context, limits, usable, view),
        _check_gpus(context, limits, usable),
        _check_start(context, limits, view),
    ]


def _check_partition(
    context: Context, limits: PartitionLimits, usable: Sequence[NodeLoad], view: View
) -> list[Finding]:
    refused = _find_closed(context, limits) or _judge_reservation(context, view)
    if refused:
        return refused
    nodes, name = context.spec.nodes, limits.name
    num_usable = count_in_one(usable, limits.names)
    if not limits.is_up:
        remedy = "ask the site, or use another --partition"
        return [warn("partition", f"{name} is closed", "jobs may be taken, none starts", remedy)]
    if num_usable < nodes:
        of_what = f"nodes of {name}{_say_kind(context, limits)}"
        what = f"{num_usable} of the {context.partition.num_nodes} {of_what} can be used, {nodes} are asked for"
        reason = "the others are down, drained or excluded: the job waits until they come back"
        remedy = "use fewer nodes; `python -m toolkit cluster` shows why they are out"
        return [warn("partition", what, reason, remedy)]
    reserved = f" in reservation {context.spec.reservation}" if context.spec.reservation else ""
    where = f"{name}{reserved}{_say_kind(context, limits)}"
    words = f"{nodes} of {num_usable} usable nodes of {where}, {_say_limit(context, limits)}"
    if not limits.shows_nodes:
        return [note("partition", f"{words}; what is free there this site does not show (PrivateData=nodes)")]
    return [ok("partition", words)]


def _find_closed(context: Context, limits: PartitionLimits) -> list[Finding]:
    """Say why a partition takes no such job from this user."""
    nodes, name = context.spec.nodes, limits.name
    if limits.barrier:
        return [refuse("partition", f"{name} is not for you", f"it has {limits.barrier}", "use another --partition")]
    if not limits.takes_jobs:
        remedy = "ask the site, or use another --partition"
        return [
            refuse("partition", f"{name} is closed", "it is drained or inactive: Slurm takes no job for it", remedy)
        ]
    if limits.max_nodes is not None and nodes > limits.max_nodes:
        must = f"a job of {name} has at most {limits.max_nodes}"
        return [refuse("partition", f"--nodes {nodes}", must, "use fewer nodes")]
    if nodes < limits.min_nodes:
        return [refuse("partition", f"--nodes {nodes}", f"a job of {name} has at least {limits.min_nodes}", "use more")]
    return []


def _say_kind(context: Context, limits: PartitionLimits) -> str:
    """Name the kind of nodes where the partition has others too."""
    partition = context.partition
    if not partition.gpus_per_node or "," not in describe_gpus(limits.nodes):
        return ""
    return f" with {partition.gpus_per_node} {partition.gpu_type or 'GPUs'} (it has {describe_gpus(limits.nodes)})"


def _say_limit(context: Context, limits: PartitionLimits) -> str:
    if limits.max_time_s is not None:
        return f"jobs of up to {say_duration(limits.max_time_s)}"
    if context.spec.time_limit_s is not None:
        return "no time limit"
    default = limits.default_time_s
    instead = f", not for its default of {say_duration(default)}" if default else ""
    return f"no time limit: the job asks for --time=UNLIMITED{instead}"


def _judge_reservation(context: Context, view: View) -> list[Finding]:
    """Hold the job against the reservation that it names."""
    spec, found = context.spec, find_reservation(view, context.spec.reservation)
    if spec.reservation is None:
        return []
    if found is None:
        names = ", ".join(one.name for one in view.reservations) or "none"
        must = f"reservations that Slurm shows: {names}"
        return [refuse("partition", f"there is no reservation {spec.reservation}", must, "set cluster.reservation")]
    if found.partition not in {"", *context.partition.names}:
        must = f"jobs in it run in partition {found.partition}"
        return [refuse("partition", f"reservation {found.name}", must, f"use --partition {found.partition}")]
    num_nodes = count_in_one(fitting_nodes(view, spec), context.partition.names)
    if num_nodes < spec.nodes:
        must = f"nodes of it that the job can use: {num_nodes}"
        return [refuse("partition", f"--nodes {spec.nodes} in reservation {found.name}", must, "use fewer nodes")]
    left_s = found.end_time - max(view.time, found.start_time)
    if left_s < (spec.time_limit_s or math.inf):
        must = f"reservation {found.name} ends {say_when(found.end_time, view.time)}: the job would wait for ever"
        asked = "no time limit" if spec.time_limit_s is None else f"--time {say_duration(spec.time_limit_s)}"
        return [refuse("partition", asked, must, f"ask for --time {max(1, math.floor(left_s / 60))}m at most")]
    return []


def _check_gpus(context: Context, limits: PartitionLimits, usable: Sequence[NodeLoad]) -> Finding:
    spec, partition, hardware = context.spec, context.partition, context.plan.hardware
    if not spec.gpus_per_node:
        if not hardware.is_gpu:
            has_none = limits.shows_nodes and not limits.gpus_per_node
            why = f"{partition.name} has none" if has_none else "cluster.gpu_type=cpu"
            return ok("gpus", f"{why}: ranks run on CPU, as planned")
        what = f"{partition.name} has none, the plan reckons with {hardware.name}"
        return warn("gpus", what, "ranks would run on CPU", "use another --partition, or set cluster.gpu_type=cpu")
    kind = context.cfg.cluster.gpu_type
    if partition.gpu_type is not None and kind is not None and not match_type(kind, partition.gpu_type):
        what = f"the plan reckons with {kind}, nodes of {partition.name} have {partition.gpu_type}"
        remedy = f"set cluster.gpu_type={partition.gpu_type}"
        has_others = len({group.type for node in limits.nodes for group in node.gpu_groups}) > 1
        found = refuse if has_others else warn  # which of several is meant cannot be guessed
        return found("gpus", what, "memory and speed will be others", remedy)
    if not limits.shows_nodes:
        return note("gpus", f"{spec.gpus_per_node} {kind or 'GPUs'} a node; this site does not show which are free")
    need = spec.gpus_per_node
    groups = [node.find_group(spec.gpu_type, least=need) for node in usable]
    right = [group for group in groups if group is not None]
    free = [group for group in right if group.count - group.used >= need]
    num_free = sum(group.count - group.used for group in right)
    what = (
        f"{num_free} of {sum(group.count for group in right)} {kind or 'GPUs'} free; {len(free)} nodes with {need} free"
    )
    if len(free) >= spec.nodes:
        return ok("gpus", what)
    if len(right) < spec.nodes:
        reason = f"{len(right)} usable nodes have {need} such GPUs, {spec.nodes} are asked for"
        return warn("gpus", what, reason, "use fewer nodes, or another --partition or cluster.gpu_type")
    return note("gpus", f"{what}: the job waits for {spec.nodes}")


def _check_start(context: Context, limits: PartitionLimits, view: View) -> Finding:
    num_jobs = count_jobs(context)
    if view.max_jobs is not None and view.num_jobs + num_jobs >= view.max_jobs:
        what = f"Slurm keeps {view.num_jobs} jobs, {num_jobs} would be handed in"
        reason = (
            f"it keeps fewer than {view.max_jobs} (MaxJobCount), with those that ended a moment ago: sbatch would fail"
        )
        return refuse("start", what, reason, "wait until others have ended; fewer --nodes make a dataset in fewer jobs")
    return _judge_start(context, limits, ask_start(context.cluster, context.spec, view), view)


def _find_key(context: Context, refusal: str) -> str:
    """Name the keys that answer a refusal, by its words; those of a site's own rules are anybody's."""
    if WAITS in refusal:
        has, spec = context.partition, context.spec
        memory = f", {spec.mem_per_node} of memory" if spec.mem_per_node else ""
        asked = f"{count_cpus(spec)} CPUs, {spec.gpus_per_node} GPUs{memory}"
        gives = f"{has.cpus_per_node} CPUs, {has.gpus_per_node} GPUs, {has.mem_per_node_mib} MiB"
        return f"ask for less: the job asks for {asked} a node, nodes of {has.name} have {gives}"
    found = [key for word, key in _KEYS.items() if word in refusal.lower()]
    return (
        f"set {' or '.join(found)}"
        if found
        else "ask for something else: cluster.sbatch_extra takes any flag of sbatch"
    )


def _judge_start(context: Context, limits: PartitionLimits, start: Start, view: View) -> Finding:
    if start.refusal:
        reason = "Slurm refused the script when asked with sbatch --test-only"
        return refuse("start", start.refusal, reason, _find_key(context, start.refusal))
    rough = start.slurm_time
    said = ""
    if rough is not None and (start.start_time is None or abs(rough - start.start_time) > _ROUGH_S):
        said = f" (sbatch --test-only, which fills no gaps: {say_when(rough, view.time)})"
    if not limits.is_up:
        return note("start", f"not while {limits.name} is closed")
    if start.start_time is None:
        why = "nodes are out, or what runs there shows no end" if limits.shows_nodes else "this site hides its nodes"
        return note("start", f"no one can tell: {why}{said}")
    when = say_when(start.start_time, view.time)
    preempts = f", preempting job {', '.join(start.preempts)}" if start.preempts else ""
    if when == "now":
        return ok("start", f"now{preempts}{said}")
    ahead = len(waiting(view, context.partition.name))
    what = f"{when}{preempts}, with {ahead} waiting now{said}"
    return note("start", what, remedy="`python -m toolkit cluster` shows whether fewer nodes would start sooner")
