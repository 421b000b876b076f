"""What stands in the way: mistakes that no choice mends, what limits a layout, and what would relax it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.config.schema import RunConfig
from toolkit.errors import Problem
from toolkit.plan.proposal import REFUSE_ABOVE, Plan


@dataclass(frozen=True, slots=True)
class Limit:
    """What takes the time (or room) that could be had back, and what would give it back."""

    what: str
    remedy: str

    def __str__(self) -> str:
        """Write one line."""
        return f"{self.what}: {self.remedy}"


def open_fields(cfg: RunConfig) -> dict[str, Any]:
    """Give the fields that the planner may fill."""
    return {
        "parallel.stages": cfg.parallel.stages,
        "parallel.zero_stage": cfg.parallel.zero_stage,
        "parallel.recompute": cfg.parallel.recompute,
        "batch.micro_batch": cfg.batch.micro_batch,
    }


def find_limit(plan: Plan) -> Limit:
    """Say what a layout loses most by."""
    layout, times = plan.layout, plan.speed.times
    total_s = times.total_s
    recompute_s = 0.25 * (times.matmul_s + times.attention_s) if layout.recompute == "full" else 0.0
    fewer = "fewer stages" if layout.stages > 2 else "one stage"
    losses = {
        times.bubble_s: Limit(
            f"bubble {times.bubble_s / total_s:.0%}", f"more micro-batches (a smaller one, a larger step) or {fewer}"
        ),
        times.gather_s: Limit(
            f"ZeRO {layout.zero_stage} traffic {times.gather_s / total_s:.0%}",
            "a larger micro_batch, or ZeRO 1 with more stages",
        ),
        times.sync_s: Limit(
            f"gradients between replicas {times.sync_s / total_s:.0%}", "a larger tokens_per_step, or more stages"
        ),
        times.peer_s: Limit(f"traffic between stages {times.peer_s / total_s:.0%}", fewer),
        recompute_s: Limit(f"recompute {recompute_s / total_s:.0%}", "room: more stages, more nodes"),
        times.optimizer_s + times.fixed_s: Limit(
            f"once a step {(times.optimizer_s + times.fixed_s) / total_s:.0%}", "a larger tokens_per_step"
        ),
    }
    worst_s = max(losses)
    if not plan.is_roomy:
        return Limit(f"memory {plan.memory_part:.0%}", _roomier(plan))
    if worst_s < 0.08 * total_s:
        return Limit(f"arithmetic {1 - worst_s / total_s:.0%}", "more nodes")
    return losses[worst_s]


def _roomier(plan: Plan) -> str:
    layout = plan.layout
    ways = ["recompute"] if layout.recompute == "none" else []
    ways += ["a smaller micro_batch"] if layout.micro_batch > 1 else []
    ways += ["more stages"] if layout.stages < plan.cfg.model.num_hidden_layers else []
    return ", ".join([*ways, "more nodes"])


def find_mistakes(cfg: RunConfig) -> list[Problem]:
    """Find what no choice of the planner could mend; each names the two that contradict each other."""
    world, blocks, stages = cfg.world_size, cfg.model.num_hidden_layers, cfg.parallel.stages
    problems = []
    if stages is not None and (stages > blocks or world % stages):
        works = ", ".join(str(n) for n in range(1, min(world, blocks) + 1) if world % n == 0)
        what = f"parallel.stages={stages} with {blocks} blocks on {world} ranks"
        rule = "every stage needs a block, and stages must divide the number of ranks"
        problems.append(Problem(what, rule, f"set parallel.stages to one of {works}"))
    if stages is not None and stages > 1 and (cfg.parallel.zero_stage or 0) >= 2:
        what = f"parallel.zero_stage={cfg.parallel.zero_stage} cannot run with parallel.stages={stages}"
        remedy = "set parallel.zero_stage=1 or parallel.stages=1"
        problems.append(Problem(what, "DeepSpeed's pipeline engine takes ZeRO 0 or 1", remedy))
    tokens, seq_len = cfg.batch.tokens_per_step, cfg.data.seq_len
    if tokens % seq_len:
        what = f"batch.tokens_per_step={tokens} with data.seq_len={seq_len}"
        remedy = f"set batch.tokens_per_step={-(-tokens // seq_len) * seq_len}"
        problems.append(Problem(what, "a step holds whole samples", remedy))
    return problems


def no_division(cfg: RunConfig) -> Problem:
    """Say that the samples of a step cannot be dealt to the ranks, and what would be the next that can."""
    samples, world = cfg.samples_per_step, cfg.world_size
    # The widest pipeline that is allowed has the fewest replicas, and so the weakest demand.
    zero_needs_one = (cfg.parallel.zero_stage or 0) >= 2
    widest = 1 if zero_needs_one else min(world, cfg.model.num_hidden_layers)
    stages = cfg.parallel.stages or max(n for n in range(1, widest + 1) if world % n == 0)
    unit = (cfg.batch.micro_batch or 1) * (world // stages)
    tokens = -(-samples // unit) * unit * cfg.data.seq_len
    micro_batch = f", micro_batch {cfg.batch.micro_batch}" if cfg.batch.micro_batch else ""
    return Problem(
        f"{samples} samples a step cannot be dealt to {world} ranks ({stages} stages{micro_batch})",
        "samples a step must be a multiple of micro_batch x replicas",
        f"set batch.tokens_per_step={tokens}, or use another number of nodes",
    )


def too_large(cfg: RunConfig, nearest: Plan, ways: Sequence[Mapping[str, Any]]) -> Problem:
    """Say what the nearest layout lacks, and settings that were tried and fit."""
    have = (nearest.hardware.memory_bytes or 0) / 2**30
    need, layout = nearest.fullest_bytes / 2**30, nearest.layout
    stage = max(range(layout.stages), key=lambda n: nearest.memory[n].total_bytes)
    parts = nearest.memory[stage]
    what = (
        f"the model does not fit: the nearest layout ({layout.stages} stages x {layout.replicas} replicas, ZeRO "
        f"{layout.zero_stage}, micro-batch {layout.micro_batch}"
        f"{', recompute' if layout.recompute == 'full' else ''}) needs {need:.1f} GiB on stage {stage} "
        f"(states {parts.states_bytes / 2**30:.1f}, activations {parts.activations_bytes / 2**30:.1f}, logits "
        f"{parts.logits_bytes / 2**30:.1f}), {need - REFUSE_ABOVE * have:.1f} GiB too many"
    )
    rule = f"a rank may use {REFUSE_ABOVE:.0%} of the {have:.1f} GiB of {nearest.hardware.name}"
    if not ways:
        return Problem(what, rule, "use a smaller model, a shorter data.seq_len, or devices with more memory")
    return Problem(what, rule, "; or ".join(f"set {_words(values)}" for values in ways))


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={str(value).lower()}" for key, value in values.items())
