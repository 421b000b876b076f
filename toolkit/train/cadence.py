"""How often to save: as often as failures make it worth what a save costs."""

import math
from typing import Literal

GPU_HOURS_PER_FAILURE = 50_000.0
"""Prior: 419 unexpected interruptions in 54 days on 16,384 GPUs.

Source: Dubey et al. 2024, arXiv:2407.21783, section 3.3.4.
"""

FIRST_S = 60.0
"""Training time before the first save of a run, which measures what a save takes, and after one that failed."""

_LONGEST_S = 3600.0


def failure_rate(*, failures: int, gpu_hours: float, num_gpus: int) -> float:
    """Estimate failures an hour of a job from those that were seen, beginning from the prior as one failure."""
    return num_gpus * (1 + failures) / (GPU_HOURS_PER_FAILURE + gpu_hours)


def save_interval_s(*, stall_s: float, save_s: float, failures_per_hour: float) -> float:
    """Choose the training time between saves that loses least, in seconds.

    Args:
        stall_s: how long training stands still for a save.
        save_s: how long it takes until the checkpoint is complete; none is begun before.
        failures_per_hour: of the whole job.

    Source: Daly 2006, doi:10.1016/j.future.2004.11.016, equation 37 (a refinement of Young 1974,
    doi:10.1145/361147.361115, sqrt(2 * cost * mean time between failures)).
    """
    mean_s = 3600.0 / failures_per_hour
    if stall_s >= 2 * mean_s:
        best_s = mean_s
    else:
        part = math.sqrt(stall_s / (2 * mean_s))
        best_s = math.sqrt(2 * stall_s * mean_s) * (1 + part / 3 + part * part / 9) - stall_s
    return min(max(best_s, 2 * save_s, stall_s), _LONGEST_S)


class SavePacer:
    """Says when the next save is due; the clock is the caller's."""

    def __init__(self, every: int | Literal["auto"], *, failures_per_hour: float, now: float) -> None:
        """Begin.

        Args:
            every: steps between saves; auto: by time, from what saves cost.
            failures_per_hour: of the whole job.
            now: time in seconds of any clock that does not jump.
        """
        self.longest_stall_s: float | None = None
        self.longest_save_s: float | None = None
        self._every = every
        self._failures_per_hour = failures_per_hour
        self._last = now

    @property
    def interval_s(self) -> float:
        """Training time between saves, where it is chosen here."""
        if self.longest_stall_s is None or self.longest_save_s is None:
            return FIRST_S
        return save_interval_s(
            stall_s=self.longest_stall_s, save_s=self.longest_save_s, failures_per_hour=self._failures_per_hour
        )

    def is_due(self, step: int, *, now: float) -> bool:
        """Tell whether to save after a step (counted from 1)."""
        if self._every == "auto":
            return now - self._last >= self.interval_s
        return step % self._every == 0

    def begun(self, *, stall_s: float, now: float) -> None:
        """Take in that a save has begun, and how long training stood still for it."""
        self._last = now
        self.longest_stall_s = max(stall_s, self.longest_stall_s or 0.0)

    def failed(self, *, now: float) -> None:
        """Take in that a save could not begin or did not come about: it is tried again soon, and not at every step."""
        self._last = now - max(0.0, self.interval_s - FIRST_S)

    def completed(self, *, save_s: float) -> None:
        """Take in how long a save took until it was complete."""
        self.longest_save_s = max(save_s, self.longest_save_s or 0.0)
