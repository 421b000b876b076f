"""What a run on this cluster has shown: the plan of the next one is corrected by it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.errors import StorageError
from toolkit.plan.memory import StageMemory
from toolkit.plan.speed import StepTime

SPREAD = 0.15
"""Part by which an uncalibrated time may be off either way: 8 of 10 published runs of sources that were left out
of the fit are within it (benchmarks/planner_accuracy.py)."""
_CALIBRATED_SPREAD = 0.05  # the layout, not the machine, is then what is uncertain
_KEPT = 20  # measurements of a kind of device


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One run, once it was steady."""

    run: str
    gpu: str
    step_s: float
    """Median of at least 20 steps after the first ones."""
    planned_step_s: float
    """What the plan said, uncalibrated."""
    memory_bytes: int | None = None
    """Peak of the fullest rank, as the allocator held it; None: not measured."""
    planned_memory_bytes: int | None = None
    states_bytes: int = 0
    """What of the plan's bytes is states: known exactly, so not corrected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Factors of what was planned; 1: as the coefficients say."""

    time: float = 1.0
    activations: float = 1.0
    spread: float = SPREAD
    runs: tuple[str, ...] = ()

    def correct_time(self, times: StepTime) -> StepTime:
        """Stretch every part of a step alike."""
        if self.time == 1.0:
            return times
        return replace(times, **{name: getattr(times, name) * self.time for name in times.__slots__})

    def correct_memory(self, memory: Sequence[StageMemory]) -> tuple[StageMemory, ...]:
        """Stretch what is not states."""
        if self.activations == 1.0:
            return tuple(memory)
        return tuple(
            replace(
                stage,
                activations_bytes=int(stage.activations_bytes * self.activations),
                logits_bytes=int(stage.logits_bytes * self.activations),
                fixed_bytes=int(stage.fixed_bytes * self.activations),
            )
            for stage in memory
        )


UNCALIBRATED = Calibration()


def calibrate(measurements: Sequence[Measurement], *, gpu: str) -> Calibration:
    """Give the factors that the runs on one kind of device suggest: the median of what each shows."""
    mine = [m for m in measurements if m.gpu == gpu]
    if not mine:
        return UNCALIBRATED
    times = [m.step_s / m.planned_step_s for m in mine]
    rooms = [
        (m.memory_bytes - m.states_bytes) / (m.planned_memory_bytes - m.states_bytes)
        for m in mine
        if m.memory_bytes is not None and m.planned_memory_bytes is not None and m.planned_memory_bytes > m.states_bytes
    ]
    return Calibration(
        time=_median(times),
        activations=max(0.1, _median(rooms)) if rooms else 1.0,
        spread=max(_CALIBRATED_SPREAD, _halfwidth(times)),
        runs=tuple(m.run for m in mine),
    )


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _halfwidth(values: Sequence[float]) -> float:
    middle = _median(values)
    return max(abs(value / middle - 1) for value in values)


def read_measurements(path: Path) -> list[Measurement]:
    """Read what was kept; nothing there: nothing was measured.

    Raises:
        StorageError: the file is not what `keep_measurement` wrote.
    """
    if not path.is_file():
        return []
    try:
        return [Measurement(**told) for told in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{path} holds no measurements: {error}\n  plans are corrected by it\n  delete it: runs write it anew"
        ) from error


def add_measurement(known: Sequence[Measurement], new: Measurement) -> list[dict[str, Any]]:
    """Give what to write: a run's newest measurement replaces its former one, old ones of the device go."""
    others = [m for m in known if (m.run, m.gpu) != (new.run, new.gpu)]
    same = [m for m in others if m.gpu == new.gpu][-(_KEPT - 1) :]
    return [asdict(m) for m in [*(m for m in others if m.gpu != new.gpu), *same, new]]


def describe_calibration(calibration: Calibration) -> Mapping[str, Any]:
    """Give it as plain values."""
    return asdict(calibration)
