"""The learning rate of a step."""

import math

from toolkit.config.schema import RunConfig


def learning_rate(step: int, *, num_steps: int, warmup_steps: int, peak: float, min_ratio: float) -> float:
    """Give the rate of a step (counted from 0): linear warm-up, then half a cosine down to `peak * min_ratio`.

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983, without restarts.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return peak * (min_ratio + (1.0 - min_ratio) * cosine)


def rate_of_run(cfg: RunConfig, *, step: int) -> float:
    """Give the learning rate of a step of a run."""
    warmup_steps = min(cfg.num_steps, -(-cfg.optim.warmup_tokens // cfg.batch.tokens_per_step))
    return learning_rate(
        step,
        num_steps=cfg.num_steps,
        warmup_steps=warmup_steps,
        peak=cfg.optim.peak_lr,
        min_ratio=cfg.optim.min_lr_ratio,
    )
