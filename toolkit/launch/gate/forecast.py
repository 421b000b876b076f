"""What the plan foretells: memory of devices and of nodes, and how many jobs the run takes."""

import math

from toolkit import storage
from toolkit.checkpoint.layout import list_steps
from toolkit.cluster.view import say_duration
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding, note, ok, refuse, refuse_for, warn
from toolkit.launch.gate.host import asked_bytes, default_bytes, most_bytes, reckon_host, says_memory
from toolkit.plan.proposal import REFUSE_ABOVE, WARN_ABOVE

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
    plan, spec, partition = context.plan, context.spec, context.partition
    ranks = spec.tasks_per_node * (spec.nodes if context.is_emulated else 1)
    need, asked, most = reckon_host(plan, ranks=ranks), asked_bytes(spec), most_bytes(spec, partition)
    if most is not None and max(asked or 0, need.total) > most[0]:
        what = f"{storage.say_bytes(max(asked or 0, need.total))} a node, allowed are {storage.say_bytes(most[0])}"
        remedy = "use fewer ranks a node, more nodes, or another --partition"
        return refuse("host-memory", what, f"{most[1]} in partition {partition.name}", remedy)
    given = None if says_memory(spec) else default_bytes(spec, partition)
    have = asked or (given[0] if given else partition.mem_per_node_mib << 20)
    if not have:
        return note("host-memory", f"{storage.say_bytes(need.total)} a node; what nodes have is not known")
    whose = "this machine" if context.is_emulated else _say_whose(context)
    what = f"{need.total / have:.0%} of the {storage.say_bytes(have)} of {whose}"
    kept = "a copy for saves in the background" + ("" if plan.hardware.is_gpu else ", model and activations")
    reason = f"{ranks} ranks keep {storage.say_bytes(need.total)}: {kept}"
    remedy = "use more nodes, or raise cluster.mem_per_node" if asked or given else "use more nodes"
    remedy = "use fewer emulated nodes, which share one memory, or a smaller model" if context.is_emulated else remedy
    if need.certain > REFUSE_ABOVE * have:
        return refuse("host-memory", what, reason, remedy)
    if need.total > WARN_ABOVE * have:
        return warn("host-memory", what, reason, remedy)
    return ok("host-memory", what)


def _say_whose(context: Context) -> str:
    """Say whose memory it is that the ranks share: asked for by whom, given by which rule, or all of a node."""
    given = default_bytes(context.spec, context.partition)
    if context.cfg.cluster.mem_per_node or (context.spec.mem_per_node and given is None):
        return "cluster.mem_per_node"
    if context.spec.mem_per_node and given is not None:
        return f"--mem={context.spec.mem_per_node}, asked for since {given[1]} gives {storage.say_bytes(given[0])}"
    if says_memory(context.spec):
        return "cluster.sbatch_extra"
    return given[1] if given else "a node"


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
