"""Fills what the user left open with the fastest layout that fits."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from toolkit.config.schema import RunConfig
from toolkit.errors import ConfigError, Problem
from toolkit.plan.costs import LayerCost, layer_costs, num_parameters
from toolkit.plan.hardware import Hardware
from toolkit.plan.memory import StageMemory, stage_memory
from toolkit.plan.speed import UNCERTAINTY, Speed, estimate_speed
from toolkit.plan.split import split_layers

USABLE = 0.88  # of a device's memory: above that the allocator thrashes
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_GROWTH = tuple(2**power for power in range(1, 11))  # times the nodes, tried for a remedy
_WIDTH = 100  # columns of the text


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A configuration with nothing open, and what is expected of it."""

    cfg: RunConfig
    boundaries: tuple[int, ...]
    memory: tuple[StageMemory, ...]
    speed: Speed
    hardware: Hardware
    notes: tuple[str, ...]

    @property
    def num_micro_batches(self) -> int:
        """Count the micro-batches of a step on each replica."""
        return self.cfg.samples_per_step // ((self.cfg.batch.micro_batch or 1) * self.cfg.replicas)

    @property
    def fits(self) -> bool:
        """Whether the fullest stage leaves enough memory free."""
        limit = self.hardware.memory_bytes
        return limit is None or max(stage.total_bytes for stage in self.memory) <= USABLE * limit


def resolve(cfg: RunConfig, *, hardware: Hardware) -> Plan:
    """Choose stages, ZeRO, micro-batch and recompute where they are None.

    Args:
        cfg: with `cluster.gpus_per_node` set, and free of the mistakes that `check_config` finds.
        hardware: what the ranks run on.

    Raises:
        ConfigError: no layout works; the text says what would.
    """
    problems = _mistakes(cfg)
    if problems:
        raise ConfigError(problems)
    plans = _plans(cfg, hardware)
    if not plans:
        raise ConfigError([_no_division(cfg)])
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        raise ConfigError([_too_large(cfg, min(plans, key=_fullest), hardware)])
    if hardware.memory_bytes is None:
        # Nothing but the bubble bounds the micro-batch of a pipeline on CPU: keep it small where that is free.
        filled = [plan for plan in fitting if _is_filled(plan)]
        fitting = filled or fitting
    # The least that is needed wins among equals: no recompute, low ZeRO, few stages.
    best = min(fitting, key=lambda plan: (round(plan.speed.step_s, 6), *_effort(plan.cfg)))
    chosen = [key for key, value in _open_fields(cfg).items() if value is None]
    notes = (f"chosen by the planner: {', '.join(chosen)}",) if chosen else ("nothing was left open",)
    return replace(best, notes=notes)


def _open_fields(cfg: RunConfig) -> dict[str, Any]:
    return {
        "parallel.stages": cfg.parallel.stages,
        "parallel.zero_stage": cfg.parallel.zero_stage,
        "parallel.recompute": cfg.parallel.recompute,
        "batch.micro_batch": cfg.batch.micro_batch,
    }


def _plans(cfg: RunConfig, hardware: Hardware) -> list[Plan]:
    costs = layer_costs(cfg.model, seq_len=cfg.data.seq_len)
    splits: dict[int, tuple[int, ...]] = {}  # many candidates share their number of stages
    plans = []
    for candidate in _candidates(cfg):
        stages = candidate.parallel.stages or 1
        if stages not in splits:
            splits[stages] = split_layers(costs, stages=stages, split_by=cfg.parallel.split_by)
        plans.append(_plan(candidate, costs, splits[stages], hardware))
    return plans


def _is_filled(plan: Plan) -> bool:
    stages = plan.cfg.parallel.stages or 1
    return stages == 1 or plan.num_micro_batches >= 2 * stages


def _candidates(cfg: RunConfig) -> Iterator[RunConfig]:
    world, blocks = cfg.world_size, cfg.model.num_hidden_layers
    given = cfg.parallel
    for stages in [given.stages] if given.stages else range(1, min(world, blocks) + 1):
        if world % stages or (stages > 1 and (given.zero_stage or 0) >= 2):
            continue
        zeros = [given.zero_stage] if given.zero_stage is not None else [1, 2, 3] if stages == 1 else [1]
        for micro_batch in [cfg.batch.micro_batch] if cfg.batch.micro_batch else _MICRO_BATCHES:
            if cfg.samples_per_step % (micro_batch * (world // stages)):
                continue
            for zero_stage in zeros:
                for recompute in [given.recompute] if given.recompute is not None else [False, True]:
                    parallel = replace(given, stages=stages, zero_stage=zero_stage, recompute=recompute)
                    batch = replace(cfg.batch, micro_batch=micro_batch)
                    yield replace(cfg, parallel=parallel, batch=batch)


def _plan(cfg: RunConfig, costs: tuple[LayerCost, ...], boundaries: tuple[int, ...], hardware: Hardware) -> Plan:
    count = cfg.samples_per_step // ((cfg.batch.micro_batch or 1) * cfg.replicas)
    memory = stage_memory(cfg, costs, boundaries, num_micro_batches=count)
    speed = estimate_speed(cfg, costs, boundaries, num_micro_batches=count, hardware=hardware)
    return Plan(cfg=cfg, boundaries=boundaries, memory=memory, speed=speed, hardware=hardware, notes=())


def _effort(cfg: RunConfig) -> tuple[int, int, int, int]:
    parallel = cfg.parallel
    return (
        bool(parallel.recompute),
        parallel.zero_stage or 0,
        parallel.stages or 1,
        -(cfg.batch.micro_batch or 1),
    )


def _fullest(plan: Plan) -> int:
    return max(stage.total_bytes for stage in plan.memory)


def _mistakes(cfg: RunConfig) -> list[Problem]:
    """Find what no choice of the planner could mend."""
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


def _no_division(cfg: RunConfig) -> Problem:
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


def _too_large(cfg: RunConfig, leanest: Plan, hardware: Hardware) -> Problem:
    need, have = _fullest(leanest) / 2**30, (hardware.memory_bytes or 0) / 2**30
    return Problem(
        f"the model does not fit: {need:.1f} GiB on the fullest stage of the leanest layout, {hardware.name}",
        f"a rank may use {USABLE:.0%} of {have:.1f} GiB",
        _way_out(cfg, hardware),
    )


def _way_out(cfg: RunConfig, hardware: Hardware) -> str:
    """Name values that were tried and fit: first on the same nodes, then on more of them."""
    free = replace(cfg.parallel, stages=None, zero_stage=None, recompute=None)
    relaxed = replace(cfg, parallel=free, batch=replace(cfg.batch, micro_batch=None))
    for factor in (1, *_GROWTH):
        nodes = cfg.cluster.nodes * factor
        wider = replace(relaxed, cluster=replace(cfg.cluster, nodes=nodes))
        fitting = [plan for plan in _plans(wider, hardware) if plan.fits]
        if not fitting:
            continue
        found = min(fitting, key=lambda plan: (plan.speed.step_s, *_effort(plan.cfg))).cfg
        values = {"cluster.nodes": nodes} if factor > 1 else {}
        for key, was in _open_fields(cfg).items():
            if was is not None and was != _open_fields(found)[key]:
                values[key] = _open_fields(found)[key]
        return "set " + ", ".join(f"{key}={str(value).lower()}" for key, value in values.items())
    return "use a smaller model, a shorter data.seq_len, or devices with more memory"


def plan_text(plan: Plan) -> str:
    """Write what is expected of a run, for people."""
    cfg, speed = plan.cfg, plan.speed
    spread = f"+-{UNCERTAINTY:.0%}, uncalibrated"
    lines = [
        f"model      {num_parameters(cfg.model):,} parameters, {cfg.model.num_hidden_layers} blocks",
        f"layout     {cfg.parallel.stages} stages x {cfg.replicas} replicas on {cfg.cluster.nodes} nodes x "
        f"{cfg.cluster.gpus_per_node} ranks ({plan.hardware.name}), ZeRO {cfg.parallel.zero_stage}, "
        f"{cfg.parallel.precision}" + (", recompute" if cfg.parallel.recompute else ""),
        f"batch      {cfg.batch.tokens_per_step:,} tokens = {cfg.samples_per_step} samples of {cfg.data.seq_len}: "
        f"{cfg.replicas} replicas x {plan.num_micro_batches} micro-batches of {cfg.batch.micro_batch}",
        f"run        {cfg.run.tokens:,} tokens in {cfg.num_steps:,} steps",
    ]
    for stage, (memory, first, last) in enumerate(zip(plan.memory, plan.boundaries, plan.boundaries[1:], strict=False)):
        lines.append(
            f"stage {stage}    layers {first}-{last - 1}: {memory.total_bytes / 2**30:.2f} GiB a rank "
            f"(states {memory.states_bytes / 2**30:.2f}, activations {memory.activations_bytes / 2**30:.2f})"
        )
    lines += [
        f"speed      {speed.step_s:.3g} s a step, {speed.tokens_per_s:,.0f} tokens/s, MFU {speed.mfu:.0%} ({spread})",
        f"bubble     {speed.bubble:.0%} of the step",
        f"cost       {speed.run_s / 3600:.3g} h, {speed.gpu_hours:.3g} GPU-hours ({spread})",
        *(f"note       {note}" for note in plan.notes),
    ]
    indent = " " * len("model      ")
    return "".join(textwrap.fill(line, _WIDTH, subsequent_indent=indent, drop_whitespace=True) + "\n" for line in lines)


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Give the same as plain values, for machines."""
    cfg, speed = plan.cfg, plan.speed
    return {
        "parameters": num_parameters(cfg.model),
        "stages": cfg.parallel.stages,
        "replicas": cfg.replicas,
        "zero_stage": cfg.parallel.zero_stage,
        "recompute": cfg.parallel.recompute,
        "micro_batch": cfg.batch.micro_batch,
        "num_micro_batches": plan.num_micro_batches,
        "num_steps": cfg.num_steps,
        "boundaries": list(plan.boundaries),
        "memory_bytes": [stage.total_bytes for stage in plan.memory],
        "step_s": speed.step_s,
        "tokens_per_s": speed.tokens_per_s,
        "bubble": speed.bubble,
        "mfu": speed.mfu,
        "gpu_hours": speed.gpu_hours,
        "notes": list(plan.notes),
    }
