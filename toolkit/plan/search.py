"""Fills what the user left open with the fastest layout that fits."""

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
    costs = layer_costs(cfg.model, seq_len=cfg.data.seq_len)
    plans = [_plan(candidate, costs, hardware) for candidate in _candidates(cfg)]
    if not plans:
        raise ConfigError([_no_division(cfg)])
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        raise ConfigError([_too_large(min(plans, key=_fullest), hardware)])
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


def _candidates(cfg: RunConfig) -> Iterator[RunConfig]:
    world, blocks = cfg.world_size, cfg.model.num_hidden_layers
    given = cfg.parallel
    for stages in [given.stages] if given.stages else range(1, min(world, blocks) + 1):
        if world % stages:
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


def _plan(cfg: RunConfig, costs: tuple[LayerCost, ...], hardware: Hardware) -> Plan:
    assert cfg.parallel.stages is not None, "a candidate has no stages"
    boundaries = split_layers(costs, stages=cfg.parallel.stages, split_by=cfg.parallel.split_by)
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


def _no_division(cfg: RunConfig) -> Problem:
    samples, world = cfg.samples_per_step, cfg.world_size
    stages = cfg.parallel.stages or 1
    unit = (cfg.batch.micro_batch or 1) * max(1, world // stages) * cfg.data.seq_len
    return Problem(
        f"{samples} samples a step cannot be dealt to {world} GPUs ({stages} stages)",
        "samples a step must be a multiple of micro_batch x replicas",
        f"set batch.tokens_per_step to a multiple of {unit}, or use another number of nodes",
    )


def _too_large(plan: Plan, hardware: Hardware) -> Problem:
    need, have = _fullest(plan) / 2**30, (hardware.memory_bytes or 0) / 2**30
    return Problem(
        f"the model does not fit: {need:.1f} GiB on the fullest stage of the leanest layout, {hardware.name}",
        f"a rank may use {USABLE:.0%} of {have:.1f} GiB",
        "use more nodes, more parallel.stages, a smaller batch.micro_batch, or parallel.recompute=true",
    )


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
    return "\n".join(lines) + "\n"


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
