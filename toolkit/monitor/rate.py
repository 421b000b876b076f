"""Tokens a second, MFU, waiting for data, time left: over the newest steps."""

from collections import deque

from toolkit.monitor import metrics

_WINDOW = 20


class RateMeter:
    """Turns times of steps into rates; the clock is the caller's."""

    def __init__(self, *, tokens_per_step: int, flops_per_token: float, peak_flops: float | None) -> None:
        self._tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._steps: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._is_first = True

    def step(self, *, step_s: float, data_s: float) -> dict[str, float]:
        """Take in a step, give the rates; the first of an attempt warms up and is not counted."""
        if self._is_first:
            self._is_first = False
            return {metrics.STEP_S: step_s}
        self._steps.append((step_s, data_s))
        total_s = sum(step for step, _ in self._steps)
        tokens_per_s = self._tokens_per_step * len(self._steps) / total_s
        values = {
            metrics.STEP_S: step_s,
            metrics.TOKENS_PER_S: tokens_per_s,
            metrics.DATA_FRACTION: sum(data for _, data in self._steps) / total_s,
        }
        if self._peak_flops is not None:
            values[metrics.MFU] = tokens_per_s * self._flops_per_token / self._peak_flops
        return values

    def eta_s(self, steps_left: int) -> float | None:
        """Tell the time that the steps left will take; None: not known yet."""
        if not self._steps:
            return None
        return steps_left * sum(step for step, _ in self._steps) / len(self._steps)
