"""Numbers in, verdict out."""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence

WINDOW = 128
"""Steps that are looked back on."""

_MIN_LOSSES = 32  # fewer say nothing of how losses scatter
_NORMAL = 1.4826  # standard deviation of a normal distribution in median absolute deviations
_MIN_RISE = 0.02  # of the median: where losses hardly scatter, a rise by less harms nobody
_TYPICAL = 8.0
_LONGEST = 2.0


def check_finite(*, step: int, loss: float, grad_norm: float | None) -> str | None:
    """Say what of a step is not a finite number; None: all is well."""
    if not math.isfinite(loss):
        return f"the loss of step {step} is {loss}"
    if grad_norm is not None and not math.isfinite(grad_norm):
        return f"the gradient norm of step {step} is {grad_norm}"
    return None


class Spikes:
    """Knows which losses are usual from the newest ones that were."""

    def __init__(self, limit: float | None, *, losses: Iterable[float]) -> None:
        """Begin.

        Args:
            limit: robust standard deviations above the median; None: nothing is a spike.
            losses: of the steps before, oldest first.
        """
        self._limit = limit
        self._losses = deque(losses, maxlen=WINDOW)

    def highest(self) -> float | None:
        """Give the highest loss that is usual; None: not known yet.

        Source: Rousseeuw and Croux 1993, "Alternatives to the median absolute deviation", section 1.
        """
        if self._limit is None or len(self._losses) < _MIN_LOSSES:
            return None
        median = statistics.median(self._losses)
        deviation = _NORMAL * statistics.median(abs(loss - median) for loss in self._losses)
        return median + max(self._limit * deviation, _MIN_RISE * abs(median))

    def take(self, loss: float) -> bool:
        """Take in the loss of a step; whether it is a spike: those do not count as usual."""
        highest = self.highest()
        if highest is not None and loss > highest:
            return True
        self._losses.append(loss)
        return False


class PhaseClock:
    """Learns how long the phases of a run take, to tell a hang from work."""

    def __init__(self, *, min_s: float, start_s: float) -> None:
        """Begin.

        Args:
            min_s: no limit is shorter.
            start_s: limit of a phase that nothing is known of.
        """
        self._min_s = min_s
        self._start_s = start_s
        self._seen: dict[str, deque[float]] = {}

    def take(self, phase: str, seconds: float) -> None:
        """Take in a phase that has ended."""
        self._seen.setdefault(phase, deque(maxlen=WINDOW)).append(seconds)

    def limit_s(self, phase: str) -> float:
        """Tell the time after which a phase is a hang."""
        seen = self._seen.get(phase)
        if not seen:
            return max(self._min_s, self._start_s)
        return max(self._min_s, _TYPICAL * statistics.median(seen), _LONGEST * max(seen))


def find_stragglers(seconds: Sequence[float], *, peers: Sequence[Sequence[int]], ratio: float) -> dict[int, float]:
    """Find the ranks that compute more slowly than those that compute the same.

    Args:
        seconds: of each rank's computing.
        peers: ranks that hold the same layers, in groups; one alone is compared with nobody.
        ratio: slow is who takes so many times as long as the median of the others of its group.

    Returns:
        The ratio of each slow rank.
    """
    slow = {}
    for group in peers:
        for rank in group:
            others = [seconds[other] for other in group if other != rank]
            typical = statistics.median(others) if others else 0.0
            if typical > 0 and seconds[rank] > ratio * typical:
                slow[rank] = seconds[rank] / typical
    return slow
