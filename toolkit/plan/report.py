"""What is expected of a run, for people and for machines."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from toolkit.plan.advice import find_limit
from toolkit.plan.costs import num_parameters
from toolkit.plan.proposal import REFUSE_ABOVE, WARN_ABOVE, Plan

_WIDTH = 100  # columns of the text


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One line of the table of layouts."""

    nodes: int
    stages: int
    replicas: int
    zero_stage: int
    micro_batch: int
    num_micro_batches: int
    recompute: bool
    step_s: float
    step_low_s: float
    step_high_s: float
    tokens_per_s: float
    mfu: float
    causal_mfu: float
    memory_gib: float
    """Peak of the fullest stage."""
    memory_part: float
    """Of the device's; 0 where it is not checked."""
    verdict: str
    """fits, tight (above 88 %) or refused (above 95 %)."""
    bubble: float
    gpu_hours: float
    days: float
    limit: str
    remedy: str


def plan_rows(plans: Sequence[Plan]) -> list[PlanRow]:
    """Give the lines of a table of plans, in their order."""
    return [_row(plan) for plan in plans]


def _row(plan: Plan) -> PlanRow:
    layout, speed, limit = plan.layout, plan.speed, find_limit(plan)
    return PlanRow(
        nodes=plan.cfg.cluster.nodes,
        stages=layout.stages,
        replicas=layout.replicas,
        zero_stage=layout.zero_stage,
        micro_batch=layout.micro_batch,
        num_micro_batches=layout.num_micro_batches,
        recompute=layout.recompute == "full",
        step_s=speed.step_s,
        step_low_s=speed.step_s * (1 - speed.spread),
        step_high_s=speed.step_s * (1 + speed.spread),
        tokens_per_s=speed.tokens_per_s,
        mfu=speed.mfu,
        causal_mfu=speed.causal_mfu,
        memory_gib=plan.fullest_bytes / 2**30,
        memory_part=plan.memory_part,
        verdict=verdict(plan.memory_part),
        bubble=speed.bubble,
        gpu_hours=speed.gpu_hours,
        days=speed.run_s / 86400,
        limit=limit.what,
        remedy=limit.remedy,
    )


def verdict(memory_part: float) -> str:
    """Say whether a part of a device's memory is too much."""
    return "refused" if memory_part > REFUSE_ABOVE else "tight" if memory_part > WARN_ABOVE else "fits"


def plan_text(plan: Plan) -> str:
    """Write what is expected of a run, for people."""
    cfg, speed, layout = plan.cfg, plan.speed, plan.layout
    spread = f"+-{speed.spread:.0%}, {count_runs(plan.calibration.runs)}"
    lines = [
        f"model      {num_parameters(cfg.model):,} parameters, {cfg.model.num_hidden_layers} blocks",
        f"layout     {layout.stages} stages x {layout.replicas} replicas on {cfg.cluster.nodes} nodes x "
        f"{cfg.cluster.gpus_per_node} ranks ({plan.hardware.name}), ZeRO {layout.zero_stage}, "
        f"{cfg.parallel.precision}" + (", recompute" if cfg.parallel.recompute else ""),
        f"batch      {cfg.batch.tokens_per_step:,} tokens = {cfg.samples_per_step} samples of {cfg.data.seq_len}: "
        f"{layout.replicas} replicas x {plan.num_micro_batches} micro-batches of {layout.micro_batch}",
        f"run        {cfg.run.tokens:,} tokens in {cfg.num_steps:,} steps",
        *_stage_lines(plan),
        f"speed      {speed.step_s:.3g} s a step ({_interval(speed.step_s, speed.spread)}), {speed.tokens_per_s:,.0f} "
        f"tokens/s, MFU {speed.mfu:.0%}, with causal attention {speed.causal_mfu:.0%} ({spread})",
        f"bubble     {speed.bubble:.0%} of the step",
        f"limit      {find_limit(plan)}",
        f"cost       {speed.run_s / 3600:.3g} h ({_interval(speed.run_s / 3600, speed.spread)}), "
        f"{speed.gpu_hours:.3g} GPU-hours ({spread})",
        *(f"note       {note}" for note in plan.notes),
    ]
    indent = " " * len("model      ")
    return "".join(textwrap.fill(line, _WIDTH, subsequent_indent=indent, drop_whitespace=True) + "\n" for line in lines)


def _interval(value: float, spread: float) -> str:
    return f"{value * (1 - spread):.3g} to {value * (1 + spread):.3g}"


class Unit(NamedTuple):
    """A unit of how long a run lasts."""

    name: str
    short: str
    seconds: float


_UNITS = (Unit("days", "d", 86400.0), Unit("hours", "h", 3600.0), Unit("minutes", "min", 60.0))


def choose_unit(seconds: float) -> Unit:
    """Choose the largest unit that makes one of a time."""
    return next((unit for unit in _UNITS if seconds >= unit.seconds), Unit("seconds", "s", 1.0))


def say_gpu_hours(hours: float) -> str:
    """Write GPU-hours, few of them with two digits."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def count_runs(runs: Sequence[str]) -> str:
    """Say by how many runs a plan is calibrated."""
    return f"calibrated by {len(runs)} run{'s' if len(runs) > 1 else ''}" if runs else "uncalibrated"


def _stage_lines(plan: Plan) -> list[str]:
    """Write a line a stage; of many stages the first, the last and the fullest."""
    stages = list(zip(plan.memory, plan.boundaries, plan.boundaries[1:], strict=False))
    fullest = max(range(len(stages)), key=lambda n: stages[n][0].total_bytes)
    shown = range(len(stages)) if len(stages) <= 8 else sorted({0, 1, fullest, len(stages) - 2, len(stages) - 1})
    limit = plan.hardware.memory_bytes
    return [
        f"stage {stage:<4} layers {first}-{last - 1}: {memory.total_bytes / 2**30:.2f} GiB a rank"
        + (f" = {memory.total_bytes / limit:.0%}" if limit else "")
        + f" (states {memory.states_bytes / 2**30:.2f}, activations {memory.activations_bytes / 2**30:.2f}, logits "
        f"{memory.logits_bytes / 2**30:.2f})"
        for stage in shown
        for memory, first, last in [stages[stage]]
    ]


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Give the same as plain values, for machines."""
    cfg, speed, layout, limit = plan.cfg, plan.speed, plan.layout, find_limit(plan)
    return {
        "parameters": num_parameters(cfg.model),
        "hardware": plan.hardware.name,
        "nodes": cfg.cluster.nodes,
        "stages": layout.stages,
        "replicas": layout.replicas,
        "zero_stage": layout.zero_stage,
        "recompute": cfg.parallel.recompute,
        "micro_batch": layout.micro_batch,
        "num_micro_batches": plan.num_micro_batches,
        "num_steps": cfg.num_steps,
        "boundaries": list(plan.boundaries),
        "memory_bytes": [stage.total_bytes for stage in plan.memory],
        "states_bytes": [stage.states_bytes for stage in plan.memory],
        "memory_part": plan.memory_part,
        "verdict": verdict(plan.memory_part),
        "step_s": speed.step_s,
        "spread": speed.spread,
        "times": asdict(speed.times),
        "tokens_per_s": speed.tokens_per_s,
        "bubble": speed.bubble,
        "mfu": speed.mfu,
        "causal_mfu": speed.causal_mfu,
        "run_s": speed.run_s,
        "gpu_hours": speed.gpu_hours,
        "limit": limit.what,
        "remedy": limit.remedy,
        "calibrated_by": list(plan.calibration.runs),
        "notes": list(plan.notes),
    }
