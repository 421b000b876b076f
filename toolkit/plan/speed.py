"""How fast a layout goes: the slowest stage, the bubble, and gradient traffic. Uncalibrated."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.config.schema import RunConfig
from toolkit.plan.costs import LayerCost, train_flops_per_token
from toolkit.plan.hardware import Hardware

UNCERTAINTY = 0.4
"""Part by which an uncalibrated step time may be off either way. assumption, until measurements are fitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What a layout is expected to do."""

    step_s: float
    tokens_per_s: float
    bubble: float
    """Part of the step in which a stage waits for the pipeline to fill and drain."""
    mfu: float
    run_s: float
    gpu_hours: float


def estimate_speed(
    cfg: RunConfig,
    costs: Sequence[LayerCost],
    boundaries: Sequence[int],
    *,
    num_micro_batches: int,
    hardware: Hardware,
) -> Speed:
    """Estimate the step of a configuration without open fields.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2: 1F1B takes (m + p - 1) slots of the
    slowest stage.
    """
    bounds = list(itertools.pairwise(boundaries))
    slowest = max(sum(layer.forward_flops_per_token for layer in costs[a:b]) for a, b in bounds)
    largest = max(sum(layer.parameters for layer in costs[a:b]) for a, b in bounds)
    passes = 4.0 if cfg.parallel.recompute else 3.0
    is_bf16 = cfg.parallel.precision == "bf16"
    peak = hardware.peak_bf16_flops if is_bf16 else hardware.peak_fp32_flops
    micro_tokens = (cfg.batch.micro_batch or 1) * cfg.data.seq_len
    deepest = max(b - a for a, b in bounds)
    slot_s = passes * slowest * micro_tokens / (peak * hardware.achievable) + hardware.layer_overhead_s * deepest
    stages = len(bounds)
    slot_s += _slot_traffic_s(cfg, largest, stages=stages, hardware=hardware)
    step_s = slot_s * (num_micro_batches + stages - 1) + _step_traffic_s(cfg, largest, hardware=hardware)
    flops = train_flops_per_token(cfg.model, seq_len=cfg.data.seq_len) * cfg.batch.tokens_per_step
    run_s = step_s * cfg.num_steps
    return Speed(
        step_s=step_s,
        tokens_per_s=cfg.batch.tokens_per_step / step_s,
        bubble=(stages - 1) / (num_micro_batches + stages - 1),
        mfu=flops / (step_s * cfg.world_size * peak),
        run_s=run_s,
        gpu_hours=run_s * cfg.world_size / 3600,
    )


def _step_traffic_s(cfg: RunConfig, parameters: int, *, hardware: Hardware) -> float:
    """Time to bring replicas together once a step: fp32 gradients one way, weights the other.

    ZeRO 2 and 3 reduce with each micro-batch instead: see `_slot_traffic_s`.

    Source: Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, section 7: 2 elements a parameter.
    """
    zero = cfg.parallel.zero_stage or 0
    elements = 2.0 if zero <= 1 else 1.0 if zero == 2 else 0.0
    return elements * 4.0 * parameters * _ring_part(cfg) / _replica_bandwidth(cfg, hardware)


def _slot_traffic_s(cfg: RunConfig, parameters: int, *, stages: int, hardware: Hardware) -> float:
    """Time for what crosses the wire in each micro-batch: activations, and slices under ZeRO 2 and 3.

    assumption: nothing hides behind arithmetic, so that ZeRO 2 and 3 are taken only where memory asks for it.

    Source: Rajbhandari et al. 2020 (ZeRO), arXiv:1910.02054, section 7: ZeRO 3 gathers the weights for
    the forward and again for the backward pass; DeepSpeed 0.19.8 reduces gradients every micro-batch there.
    """
    width = 2.0 if cfg.parallel.precision == "bf16" else 4.0
    zero = cfg.parallel.zero_stage or 0
    slices = (4.0 if zero >= 2 else 0.0) + (2.0 * width if zero == 3 else 0.0)
    slices_s = slices * parameters * _ring_part(cfg) / _replica_bandwidth(cfg, hardware)
    tokens = (cfg.batch.micro_batch or 1) * cfg.data.seq_len
    passed = 2.0 * tokens * cfg.model.hidden_size * width if stages > 1 else 0.0
    return slices_s + passed / hardware.network_bytes_per_s


def _ring_part(cfg: RunConfig) -> float:
    return (cfg.replicas - 1) / cfg.replicas


def _replica_bandwidth(cfg: RunConfig, hardware: Hardware) -> float:
    """Replicas of a stage are neighbours: they talk inside a node as long as they fit into one."""
    fits = cfg.replicas <= (cfg.cluster.gpus_per_node or 1)
    return hardware.link_bytes_per_s if fits else hardware.network_bytes_per_s
