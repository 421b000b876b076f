"""What runs on this cluster have shown: the plan of the next one is corrected by it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import records
from toolkit.errors import RecordError
from toolkit.plan.memory import StageMemory
from toolkit.plan.speed import StepTime

CALIBRATION = "calibration.json"
"""Name of the file of measurements, beside the site profile."""
SPREAD = 0.15
"""Part by which an uncalibrated time may be off either way: 8 of 10 published runs of sources that were left out
of the fit are within it (benchmarks/planner_accuracy.py)."""
_CALIBRATED_SPREAD = 0.05  # the layout, not the machine, is then what is uncertain
_KEPT = 20  # measurements of a kind of device
# Measured steps scatter by about 5 %, factors of parts differ by about 25 %: the squared ratio holds the parts together
# where measurements do not tell them apart. assumption
_TRUST = 0.04

PARTS: Mapping[str, tuple[str, ...]] = {
    "products": ("matmul_s",),
    "attention": ("attention_s",),
    "memory": ("elementwise_s", "optimizer_s"),
    "head": ("head_s",),
    "wires": ("gather_s", "peer_s", "sync_s"),
    "fixed": ("fixed_s",),
}
"""Parts of a step that have a factor each; the bubble goes with those that compute."""
_COMPUTE = ("products", "attention", "memory", "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One run, once it was steady."""

    run: str
    gpu: str
    """Name of the device as the table of hardware has it; of CPUs also what a rank has of them."""
    step_s: float
    """Median of at least 20 steps after the first ones."""
    planned: Mapping[str, float]
    """Seconds of each part of a step that the plan said, uncalibrated: the fields of StepTime."""
    memory_bytes: int | None = None
    """Peak of the fullest rank; None: not measured."""
    planned_memory_bytes: int | None = None
    states_bytes: int = 0
    """What of the plan's bytes is states: known exactly, so not corrected."""

    @property
    def planned_step_s(self) -> float:
        """Give what the plan said, uncalibrated."""
        return sum(self.planned.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Factors of what was planned; 1: as the coefficients say."""

    factors: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 1.0))
    """Of the time of each of PARTS."""
    activations: float = 1.0
    spread: float = SPREAD
    runs: tuple[str, ...] = ()

    def correct_time(self, times: StepTime) -> StepTime:
        """Stretch the parts of a step, each by its factor."""
        if not self.runs:
            return times
        told = asdict(times)
        parts = _parts(told)
        stretched = {name: told[name] * self.factors.get(part, 1.0) for part, names in PARTS.items() for name in names}
        compute_s = sum(parts[part] for part in _COMPUTE)
        now_s = sum(parts[part] * self.factors.get(part, 1.0) for part in _COMPUTE)
        bubble_s = told["bubble_s"] * (now_s / compute_s if compute_s else 1.0)
        return replace(times, **stretched, bubble_s=bubble_s)

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


def _parts(planned: Mapping[str, float]) -> dict[str, float]:
    """Sum seconds by part, the bubble left out."""
    return {part: sum(planned.get(name, 0.0) for name in names) for part, names in PARTS.items()}


def _dealt_parts(planned: Mapping[str, float]) -> list[float]:
    """Sum seconds by part, the bubble dealt to those that compute, in proportion."""
    parts = _parts(planned)
    compute_s = sum(parts[part] for part in _COMPUTE) or 1.0
    more = 1.0 + planned.get("bubble_s", 0.0) / compute_s
    return [seconds * (more if part in _COMPUTE else 1.0) for part, seconds in parts.items()]


def calibrate(measurements: Sequence[Measurement], *, gpu: str) -> Calibration:
    """Give the factors that the runs on one kind of device suggest.

    One run gives one factor for all parts; runs that spend their time differently tell the parts apart: least
    squares of relative errors, held to the common factor as far as nothing speaks against it.
    """
    mine = [m for m in measurements if m.gpu == gpu and m.planned_step_s > 0]
    if not mine:
        return UNCALIBRATED
    common = float(np.median([m.step_s / m.planned_step_s for m in mine]))
    shares = common * np.array([_dealt_parts(m.planned) for m in mine]) / np.array([[m.step_s] for m in mine])
    anchors = np.sqrt(_TRUST) * np.eye(len(PARTS))
    goal = np.concatenate([np.ones(len(mine)), np.diag(anchors)])
    found = np.linalg.lstsq(np.concatenate([shares, anchors]), goal, rcond=None)[0]
    factors = np.maximum(found, 0.1) * common
    misses = np.abs(shares @ (factors / common) - 1)
    return Calibration(
        factors={part: float(factor) for part, factor in zip(PARTS, factors, strict=True)},
        activations=_activations(mine),
        spread=max(_CALIBRATED_SPREAD, float(misses.max())),
        runs=tuple(m.run for m in mine),
    )


def _activations(measurements: Sequence[Measurement]) -> float:
    rooms = [
        (m.memory_bytes - m.states_bytes) / (m.planned_memory_bytes - m.states_bytes)
        for m in measurements
        if m.memory_bytes is not None and m.planned_memory_bytes is not None and m.planned_memory_bytes > m.states_bytes
    ]
    return max(0.1, float(np.median(rooms))) if rooms else 1.0


def read_measurements(path: Path) -> list[Measurement]:
    """Read what was kept; nothing there: nothing was measured. What another version of the toolkit added is left out.

    Raises:
        RecordError: the file is not what `add_measurement` gave.
    """
    try:
        return records.read_record(path, list[Measurement]) or []
    except RecordError as error:
        raise RecordError(f"{error}\n  plans are corrected by it\n  delete it: runs write it anew") from error


def add_measurement(known: Sequence[Measurement], new: Measurement) -> list[dict[str, Any]]:
    """Give what to write: a run's newest measurement replaces its former one, old ones of the device go."""
    others = [m for m in known if (m.run, m.gpu) != (new.run, new.gpu)]
    same = [m for m in others if m.gpu == new.gpu][-(_KEPT - 1) :]
    return [asdict(m) for m in [*(m for m in others if m.gpu != new.gpu), *same, new]]
