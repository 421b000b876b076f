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
    slowest stage; ring all-reduce moves twice the gradients.
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
    traffic = 2.0 * largest * 4.0 * (cfg.replicas - 1) / max(1, cfg.replicas)
    step_s = slot_s * (num_micro_batches + stages - 1) + traffic / hardware.network_bytes_per_s
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
