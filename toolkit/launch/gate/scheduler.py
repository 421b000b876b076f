"""What the scheduler has for the job: its partition, free GPUs of the right kind, and when it would start."""

from collections.abc import Sequence

from toolkit.cluster.base import NodeLoad, PartitionLimits, View
from toolkit.cluster.view import nodes_of, say_duration, say_when, waiting
from toolkit.errors import ConfigError
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding, note, ok, refuse, warn
from toolkit.launch.start import Start, ask_start
from toolkit.plan.hardware import find_hardware

_ROUGH_S = 600.0  # a difference that is worth a word


def check_scheduler(context: Context) -> list[Finding]:
    """Look at `partition`, `gpus` and `start`."""
    if context.is_emulated:
        return []
    view = context.cluster.look()
    name = context.partition.name
    limits = next((one for one in view.partitions if one.name == name), context.partition)
    usable = [node for node in nodes_of(view, name) if node.is_usable and node.name not in context.spec.exclude]
    return [
        _check_partition(context, limits, usable),
        _check_gpus(context, usable),
        _judge_start(context, ask_start(context.cluster, context.spec, view), view),
    ]


def _check_partition(context: Context, limits: PartitionLimits, usable: Sequence[NodeLoad]) -> Finding:
    nodes, name = context.spec.nodes, limits.name
    if limits.max_nodes is not None and nodes > limits.max_nodes:
        what = f"--nodes {nodes}"
        return refuse("partition", what, f"a job of {name} has at most {limits.max_nodes}", "use fewer nodes")
    if not limits.is_up:
        what = f"{name} is closed"
        return warn("partition", what, "jobs may be taken, none starts", "ask the site, or use another --partition")
    if len(usable) < nodes:
        out = limits.num_nodes - len(usable)
        what = f"{len(usable)} of the {limits.num_nodes} nodes of {name} can be used, {nodes} are asked for"
        reason = f"{out} are down, drained or excluded: the job waits until they come back"
        return warn("partition", what, reason, "use fewer nodes; `python -m toolkit cluster` shows why they are out")
    limit = "no time limit" if limits.max_time_s is None else f"jobs of up to {say_duration(limits.max_time_s)}"
    return ok("partition", f"{nodes} of {len(usable)} usable nodes of {name}, {limit}")


def _check_gpus(context: Context, usable: Sequence[NodeLoad]) -> Finding:
    spec, partition, hardware = context.spec, context.partition, context.plan.hardware
    if not spec.gpus_per_node:
        if not hardware.is_gpu:
            return ok("gpus", f"{partition.name} has none: ranks run on CPU, as planned")
        what = f"{partition.name} has none, the plan reckons with {hardware.name}"
        return warn("gpus", what, "ranks would run on CPU", "use another --partition, or set cluster.gpu_type=null")
    kind = context.cfg.cluster.gpu_type
    if partition.gpu_type is not None and not _is_same(kind, partition.gpu_type):
        what = f"the plan reckons with {kind}, nodes of {partition.name} have {partition.gpu_type}"
        return warn("gpus", what, "memory and speed will be others", f"set cluster.gpu_type={partition.gpu_type}")
    need = spec.gpus_per_node
    right = [node for node in usable if node.gpus >= need and _is_same(kind, node.gpu_type or kind)]
    free = [node for node in right if node.gpus - node.gpus_used >= need]
    num_free = sum(node.gpus - node.gpus_used for node in right)
    what = f"{num_free} of {sum(node.gpus for node in right)} {kind or 'GPUs'} free; {len(free)} nodes with {need} free"
    if len(free) >= spec.nodes:
        return ok("gpus", what)
    if len(right) < spec.nodes:
        reason = f"{len(right)} usable nodes have {need} such GPUs, {spec.nodes} are asked for"
        return warn("gpus", what, reason, "use fewer nodes, or another --partition or cluster.gpu_type")
    return note("gpus", f"{what}: the job waits for {spec.nodes}")


def _is_same(one: str | None, other: str | None) -> bool:
    """Whether two names of GPUs mean one kind to the planner; a name that it does not know means itself."""
    if one is None or other is None or one == other:
        return True
    try:
        return find_hardware(one) == find_hardware(other)
    except ConfigError:
        return False


def _judge_start(context: Context, start: Start, view: View) -> Finding:
    if start.refusal:
        reason = "Slurm refused the script when asked with sbatch --test-only"
        return refuse("start", start.refusal, reason, "ask for something else; `sinfo` shows what there is")
    rough = start.slurm_time
    said = ""
    if rough is not None and (start.start_time is None or abs(rough - start.start_time) > _ROUGH_S):
        said = f" (sbatch --test-only, which fills no gaps: {say_when(rough, view.time)})"
    if start.start_time is None:
        return note("start", f"no one can tell: nodes are out, or what runs there shows no end{said}")
    when = say_when(start.start_time, view.time)
    preempts = f", preempting job {', '.join(start.preempts)}" if start.preempts else ""
    if when == "now":
        return ok("start", f"now{preempts}{said}")
    ahead = len(waiting(view, context.partition.name))
    what = f"{when}{preempts}, with {ahead} waiting now{said}"
    return note("start", what, remedy="`python -m toolkit cluster` shows whether fewer nodes would start sooner")
