"""What the plan foretells: memory of devices and of nodes, and how many jobs the run takes."""

import math
import re

from toolkit import storage
from toolkit.checkpoint.layout import list_steps
from toolkit.cluster.view import say_duration
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding, note, ok, refuse, refuse_for, warn
from toolkit.plan.costs import shape_of
from toolkit.plan.proposal import REFUSE_ABOVE, WARN_ABOVE, shares_of

_COPY_BYTES = 12  # a parameter that a rank holds: weight and two moments in fp32, kept for the next save
# a rank with torch and deepspeed on CPU, of shared libraries its share; measured: 0.21 to 0.25
_PROCESS_BYTES = 0.25 * 2**30
_START_S = 120.0  # assumption: until the first step of a job, with the imports of many ranks on a shared file system


def check_forecast(context: Context) -> list[Finding]:
    """Look at `memory`, `host-memory` and `walltime`."""
    return [_check_memory(context), _check_host(context), _check_walltime(context)]


def _check_memory(context: Context) -> Finding:
    plan = context.plan
    if context.too_large is not None:
        return refuse_for("memory", context.too_large)
    limit = plan.hardware.memory_bytes
    if limit is None:
        return ok("memory", "that of the host: see host-memory")
    what = f"{plan.memory_part:.0%} of {storage.say_bytes(limit)} of {plan.hardware.name} on the fullest stage"
    if plan.is_roomy:
        return ok("memory", what)
    reason = f"above {WARN_ABOVE:.0%} allocators thrash: such runs were measured to be 2.6 to 10 times slower"
    return warn("memory", what, reason, "leave batch.micro_batch or parallel.recompute open, or use more nodes")


def _check_host(context: Context) -> Finding:
    """Hold what ranks keep in host memory against that of a node; what is certain of it refuses."""
    plan = context.plan
    ranks = context.spec.tasks_per_node * (context.spec.nodes if context.is_emulated else 1)
    certain = ranks * _copy_bytes(context)
    likely = ranks * _PROCESS_BYTES
    if not plan.hardware.is_gpu:
        fullest = max(plan.memory, key=lambda stage: stage.total_bytes)
        certain += ranks * fullest.states_bytes
        likely += ranks * (fullest.activations_bytes + fullest.logits_bytes)
    asked = read_memory(context.spec.mem_per_node)
    have = asked or context.partition.mem_per_node_mib << 20
    if not have:
        return note("host-memory", f"{storage.say_bytes(certain + likely)} a node; what nodes have is not known")
    whose = "this machine" if context.is_emulated else "cluster.mem_per_node" if asked else "a node"
    what = f"{(certain + likely) / have:.0%} of the {storage.say_bytes(have)} of {whose}"
    kept = "a copy for saves in the background" + ("" if plan.hardware.is_gpu else ", model and activations")
    reason = f"{ranks} ranks keep {storage.say_bytes(certain + likely)}: {kept}"
    remedy = "use more nodes, or raise cluster.mem_per_node" if asked else "use more nodes"
    remedy = "use fewer emulated nodes, which share one memory, or a smaller model" if context.is_emulated else remedy
    if certain > REFUSE_ABOVE * have:
        return refuse("host-memory", what, reason, remedy)
    if certain + likely > WARN_ABOVE * have:
        return warn("host-memory", what, reason, remedy)
    return ok("host-memory", what)


def _copy_bytes(context: Context) -> float:
    """Give the bytes that a rank of the largest stage keeps for saves: of the slice that it holds."""
    plan, layout = context.plan, context.plan.layout
    shape = shape_of(plan.cfg.model, seq_len=plan.cfg.data.seq_len)
    shares = shares_of(plan.boundaries, num_blocks=plan.cfg.model.num_hidden_layers)
    return _COPY_BYTES * max(share.parameters(shape) for share in shares) / layout.replicas


def read_memory(text: str | None) -> int | None:
    """Read Slurm's `500G`, MiB without a unit; None: the site's default, or all of the node."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text or "", flags=re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        return None
    return int(found[1]) << {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}[found[2].upper()]


def _check_walltime(context: Context) -> Finding:
    """Count the jobs that the run takes, and hold their restarts against the budget."""
    cfg, speed = context.cfg, context.plan.speed
    done = max(list_steps(context.run_dir.find_checkpoints(cfg.checkpoint.dir)), default=0)
    limit_s, left = context.spec.time_limit_s, max(0.0, 1 - done / cfg.num_steps)
    low_s, high_s = (speed.run_s * left * (1 + sign * speed.spread) for sign in (-1, 1))
    span = f"{'what is left' if done else 'the run'} takes {say_duration(low_s)} to {say_duration(high_s)}"
    if limit_s is None:
        return ok("walltime", f"{span}; jobs here have no time limit")
    usable_s = limit_s - cfg.cluster.signal_delay_s - _START_S
    if usable_s < 2 * speed.step_s:
        reason = (
            f"a job starts for about {_START_S:.0f} s and stops {cfg.cluster.signal_delay_s} s before its end to save"
        )
        what = f"--time {say_duration(limit_s)} leaves no room for steps of {speed.step_s:.3g} s"
        return refuse("walltime", what, reason, "ask for more --time")
    fewest, most = (max(1, math.ceil(run_s / usable_s)) for run_s in (low_s, high_s))
    jobs = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    what = f"{span}: {jobs} job{'s' if most > 1 else ''} of {say_duration(limit_s)}"
    if most - 1 > cfg.cluster.max_requeues:
        will = "would" if fewest - 1 > cfg.cluster.max_requeues else "may"
        reason = f"it {will} end unfinished: cluster.max_requeues={cfg.cluster.max_requeues} allows as many restarts"
        return warn("walltime", what, reason, f"set cluster.max_requeues={most}, more --time, or more nodes")
    return ok("walltime", what)
