"""A configuration with nothing open, and what is expected of it."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from toolkit.config.schema import RunConfig
from toolkit.plan.calibration import UNCALIBRATED, Calibration, Measurement
from toolkit.plan.costs import Shape, causal_flops_per_token, layer_costs, shape_flops_per_token, shape_of
from toolkit.plan.fitted import FITTED
from toolkit.plan.hardware import Hardware
from toolkit.plan.layout import OURS, Conditions, Layout
from toolkit.plan.memory import StageMemory, stage_memory
from toolkit.plan.speed import StageShare, StepTime, reading_s, saving_s, step_time
from toolkit.plan.split import split_layers

WARN_ABOVE = 0.88
"""Part of a device's memory above which runs were measured to be 2.6 to 10 times slower: the allocator thrashes."""
REFUSE_ABOVE = 0.95
"""Part of a device's memory above which a layout is refused."""

_AUTO_INTERVAL_S = 1800.0  # assumption: save_every=auto is decided by failures and saves that are not known yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What a layout is expected to do."""

    step_s: float
    spread: float
    """Part by which times may be off either way."""
    tokens_per_s: float
    bubble: float
    """Part of the step in which the slowest stage waits for the pipeline to fill and drain."""
    mfu: float
    """FLOPs of the model over the peak's, attention counted in full (PaLM's convention)."""
    causal_mfu: float
    """The same with attention counted as a causal model needs it: half."""
    run_s: float
    """The whole run, with saves and without waiting in queues."""
    gpu_hours: float
    times: StepTime


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A configuration with nothing open, and what is expected of it."""

    cfg: RunConfig
    layout: Layout
    boundaries: tuple[int, ...]
    memory: tuple[StageMemory, ...]
    speed: Speed
    hardware: Hardware
    calibration: Calibration = UNCALIBRATED
    notes: tuple[str, ...] = ()

    @property
    def num_micro_batches(self) -> int:
        """Count the micro-batches of a step on each replica."""
        return self.layout.num_micro_batches

    @property
    def fullest_bytes(self) -> int:
        """Give the peak of the fullest stage."""
        return max(stage.total_bytes for stage in self.memory)

    @property
    def memory_part(self) -> float:
        """Give the part of the device's memory that the fullest stage takes; 0 where it is not checked."""
        limit = self.hardware.memory_bytes
        return self.fullest_bytes / limit if limit else 0.0

    @property
    def fits(self) -> bool:
        """Whether the layout is not refused."""
        return self.memory_part <= REFUSE_ABOVE

    @property
    def is_roomy(self) -> bool:
        """Whether nothing has to be warned of."""
        return self.memory_part <= WARN_ABOVE


def make_layout(cfg: RunConfig) -> Layout:
    """Give the layout of a configuration without open fields."""
    parallel, micro_batch = cfg.parallel, cfg.batch.micro_batch or 1
    return Layout(
        nodes=cfg.cluster.nodes,
        stages=parallel.stages or 1,
        replicas=cfg.replicas,
        zero_stage=parallel.zero_stage or 0,
        micro_batch=micro_batch,
        num_micro_batches=cfg.samples_per_step // (micro_batch * cfg.replicas),
        recompute="full" if parallel.recompute else "none",
        precision=parallel.precision,
    )


def make_plan(
    cfg: RunConfig,
    boundaries: Sequence[int],
    *,
    hardware: Hardware,
    calibration: Calibration = UNCALIBRATED,
) -> Plan:
    """Reckon what a configuration without open fields needs and how fast it goes."""
    shape, layout = shape_of(cfg.model, seq_len=cfg.data.seq_len), make_layout(cfg)
    shares = shares_of(boundaries, num_blocks=cfg.model.num_hidden_layers)
    times = step_time(shape, layout, shares, on=Conditions(hardware=hardware, stack=OURS, fitted=FITTED))
    times = calibration.correct_time(times)
    memory = calibration.correct_memory(stage_memory(shape, layout, shares, stack=OURS, fitted=FITTED))
    speed = _speed(cfg, shape, layout, times, memory, hardware=hardware, calibration=calibration)
    return Plan(
        cfg=cfg,
        layout=layout,
        boundaries=tuple(boundaries),
        memory=memory,
        speed=speed,
        hardware=hardware,
        calibration=calibration,
        notes=_warn(cfg, hardware),
    )


def _warn(cfg: RunConfig, hardware: Hardware) -> tuple[str, ...]:
    if cfg.parallel.precision != "bf16" or hardware.has_bf16:
        return ()
    fp32_s = hardware.peak_bf16_flops / hardware.peak_fp32_flops
    return (
        f"{hardware.name} has no units for bf16, which this toolkit trains in: its 16-bit peak is fp16's, and products "
        f"may take up to {fp32_s:.0f} times as long as said here",
    )


def plan_of(cfg: RunConfig, *, hardware: Hardware, calibration: Calibration = UNCALIBRATED) -> Plan:
    """Reckon with a configuration as it stands; nothing in it may be open."""
    costs = layer_costs(cfg.model, seq_len=cfg.data.seq_len)
    boundaries = split_layers(costs, stages=cfg.parallel.stages or 1, split_by=cfg.parallel.split_by)
    return make_plan(cfg, boundaries, hardware=hardware, calibration=calibration)


def measurement_of(plan: Plan, *, step_s: float, memory_bytes: int | None = None) -> Measurement:
    """Set what a run took against what an uncalibrated plan says of it.

    Args:
        plan: of the run; how it was calibrated does not matter.
        step_s: median of at least 20 steps after the first ones.
        memory_bytes: most that the tensors of the fullest rank took.
    """
    plain = make_plan(plan.cfg, plan.boundaries, hardware=plan.hardware)
    fullest = max(plain.memory, key=lambda stage: stage.total_bytes)
    return Measurement(
        run=plan.cfg.run.name,
        gpu=plan.hardware.name,
        step_s=step_s,
        planned=asdict(plain.speed.times),
        memory_bytes=memory_bytes,
        planned_memory_bytes=fullest.total_bytes,
        states_bytes=fullest.states_bytes,
    )


def shares_of(boundaries: Sequence[int], *, num_blocks: int) -> tuple[StageShare, ...]:
    """Say what each stage runs of the list [embedding, blocks, norm, head]."""
    shares = []
    for first, last in itertools.pairwise(boundaries):
        blocks = max(0, min(last, num_blocks + 1) - max(first, 1))
        shares.append(StageShare(blocks=blocks, has_embedding=first == 0, has_head=last == num_blocks + 3))
    return tuple(shares)


def _speed(
    cfg: RunConfig,
    shape: Shape,
    layout: Layout,
    times: StepTime,
    memory: Sequence[StageMemory],
    *,
    hardware: Hardware,
    calibration: Calibration,
) -> Speed:
    step_s = max(times.total_s, reading_s(shape, layout))
    peak = hardware.peak_fp32_flops if layout.precision == "fp32" else hardware.peak_bf16_flops
    tokens_per_s = cfg.batch.tokens_per_step / step_s
    rank_rate = tokens_per_s / (layout.world_size * peak)
    every = cfg.checkpoint.save_every
    saves = step_s * cfg.num_steps / _AUTO_INTERVAL_S if every == "auto" else cfg.num_steps / every
    run_s = step_s * cfg.num_steps + (saves + 1) * saving_s(max(stage.states_bytes for stage in memory))
    return Speed(
        step_s=step_s,
        spread=calibration.spread,
        tokens_per_s=tokens_per_s,
        bubble=times.bubble,
        mfu=shape_flops_per_token(shape) * rank_rate,
        causal_mfu=causal_flops_per_token(shape) * rank_rate,
        run_s=run_s,
        gpu_hours=run_s * layout.world_size / 3600,
        times=times,
    )
