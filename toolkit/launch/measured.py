"""What a run showed once it was steady, held against its plan, and kept for later plans."""

import itertools
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit import storage
from toolkit.launch.expected import Expected, find_expected
from toolkit.launch.ledger import Attempt, read_attempts
from toolkit.lock import hold_briefly
from toolkit.monitor import metrics
from toolkit.monitor.history import newest_steps
from toolkit.plan.calibration import CALIBRATION, Measurement, add_measurement, read_measurements
from toolkit.rundir import RunDir

log = logging.getLogger(__name__)

ENOUGH = 20
"""Steady steps without which nothing is said."""
_WARM_UP = 5  # steps of an attempt in which memory is laid out and kernels are chosen
_NEWEST = 1000  # steps that are looked at: `status` does not read a year
# Where the middle half of 20 steps lies within a quarter of their median, the median is good to 5 %, which is what
# a calibrated plan promises (1.25 sigma / sqrt(n), sigma = 0.74 of that width). Steps of a quiet machine: 1 to 5 %.
_MOST_SCATTER = 0.25
_MOST_WAITING = 0.05  # of the time, for data
_MOST_UNEVEN = 1.25  # times as long as its peers


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Medians over the steady steps of a layout; a figure that is not known is None."""

    num_steps: int
    step_s: float
    scatter: float
    """Width of the middle half of the steps, over their median."""
    tokens_per_s: float
    mfu: float
    causal_mfu: float
    memory_bytes: int | None
    """Most that the tensors of the fullest rank took; None: on CPUs."""
    data_fraction: float
    """Part of the time that rank 0 waited for data."""
    slowest_ratio: float | None
    """Time the slowest rank computes over that of its peers."""
    is_expected: bool
    """Whether the step is within the plan's interval."""

    @property
    def disturbances(self) -> list[str]:
        """Say what made the steps other than the layout and the devices would have them."""
        found = []
        if self.data_fraction > _MOST_WAITING:
            found.append(f"{self.data_fraction:.0%} of the time is waiting for data")
        if self.slowest_ratio is not None and self.slowest_ratio > _MOST_UNEVEN:
            found.append(f"the slowest rank computes {self.slowest_ratio:.2f} times as long as its peers")
        if self.scatter > _MOST_SCATTER:
            found.append(f"steps scatter by {self.scatter:.0%}")
        return found


def list_steady(run_dir: RunDir, expected: Expected) -> list[dict[str, Any]]:
    """List the steady steps of the attempts on this layout, newest first, a thousand at most."""
    attempts = {one.attempt: one for one in read_attempts(run_dir)[expected.attempts_before :]}
    lines = itertools.islice(newest_steps(run_dir.metrics_path), _NEWEST)
    mine = [line for line in lines if line.get("attempt") in attempts and metrics.STEP_S in line]
    evaluated = {line["step"] for line in mine if metrics.VALIDATION_LOSS in line}
    return [
        line
        for line in mine
        if line["step"] > _first_steady(attempts[line["attempt"]]) and not _is_late(line["step"], expected, evaluated)
    ]


def _first_steady(attempt: Attempt) -> int:
    return (attempt.first_step or 0) + _WARM_UP


def _is_late(step: int, expected: Expected, evaluated: set[int]) -> bool:
    """Whether a step waits for ranks that are still busy with the evaluation or the save before it."""
    return step - 1 in evaluated or (expected.save_every is not None and (step - 1) % expected.save_every == 0)


def measure(steps: Sequence[Mapping[str, Any]], expected: Expected) -> Measured | None:
    """Sum up steady steps; None: they are too few."""
    if len(steps) < ENOUGH:
        return None
    times = [step[metrics.STEP_S] for step in steps]
    step_s = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    ratio = expected.step_s / step_s
    peaks = [step[metrics.PEAK_GIB] for step in steps if metrics.PEAK_GIB in step]
    uneven = [step[metrics.SLOWEST] for step in steps if metrics.SLOWEST in step]
    return Measured(
        num_steps=len(steps),
        step_s=step_s,
        scatter=(high - low) / step_s,
        tokens_per_s=expected.tokens_per_step / step_s,
        mfu=expected.mfu * ratio,
        causal_mfu=expected.causal_mfu * ratio,
        memory_bytes=int(max(peaks) * 2**30) if peaks else None,
        data_fraction=statistics.median(step.get(metrics.DATA_FRACTION, 0.0) for step in steps),
        slowest_ratio=statistics.median(uneven) if uneven else None,
        is_expected=abs(step_s / expected.step_s - 1) <= expected.spread,
    )


def compare_text(expected: Expected, measured: Measured | None, *, num_steady: int) -> str:
    """Say in a line what was expected and what was measured."""
    is_checked = expected.device_memory_bytes is not None
    room = f", {expected.memory_bytes / 2**30:.1f} GiB" if is_checked else ""
    line = f"expected {expected.mfu:.1%} MFU ({expected.step_s:.3g} s a step{room})"
    if measured is None:
        return f"{line}; measured after {ENOUGH} steady steps ({num_steady} so far)"
    room = "" if measured.memory_bytes is None else f", {measured.memory_bytes / 2**30:.1f} GiB"
    if is_checked and not room:
        room = ", memory unknown"
    line += f", measured {measured.mfu:.1%} ({measured.step_s:.3g} s{room})"
    if measured.is_expected:
        return line
    ratio = measured.step_s / expected.step_s
    return "; ".join(
        [f"{line}: {ratio:.3g} x the step, outside the plan's +-{expected.spread:.0%}", *measured.disturbances]
    )


def keep_measurement(run_dir: RunDir) -> str:
    """Keep what a run showed for later plans, and say in a line what became of it.

    Several runs may end at once, on several machines.

    Raises:
        OSError: the folder of the site profile cannot be written.
        StorageError: what is there are no measurements.
    """
    expected = find_expected(run_dir)
    if expected is None:
        return "not measured: it is not known what was expected"
    steps = list_steady(run_dir, expected)
    measured = measure(steps, expected)
    if measured is None:
        return f"not measured: {len(steps)} steady steps, {ENOUGH} are needed"
    if measured.disturbances:
        return f"later plans are not corrected by this run: {'; '.join(measured.disturbances)}"
    folder = Path(expected.site_dir)
    if not folder.is_dir():
        return f"later plans are not corrected by this run: there is no {folder} on this node"
    new = expected.measurement(run_dir.name, step_s=measured.step_s, memory_bytes=measured.memory_bytes)
    _add(folder / CALIBRATION, new)
    return f"later plans for {expected.device} are corrected by this run: {folder / CALIBRATION}"


def _add(path: Path, new: Measurement) -> None:
    with hold_briefly(path.with_suffix(".lock")):
        kept = add_measurement(read_measurements(path), new)
        storage.write_atomic(str(path), (json.dumps(kept, indent=1) + "\n").encode())


def describe_measured(run_dir: RunDir) -> dict[str, Any]:
    """Give what was expected and measured as plain values, and the line that says both."""
    expected = find_expected(run_dir)
    if expected is None:
        return {"expected": None, "measured": None, "comparison": None}
    steps = list_steady(run_dir, expected)
    measured = measure(steps, expected)
    plain = None if measured is None else {**asdict(measured), "disturbances": measured.disturbances}
    text = compare_text(expected, measured, num_steady=len(steps))
    return {"expected": asdict(expected), "measured": plain, "comparison": text}
