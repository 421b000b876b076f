"""Calibration: made measurements of a machine whose true factors are known."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.unit.plan.test_search import H100, config
from toolkit.errors import RecordError
from toolkit.plan.calibration import UNCALIBRATED, Measurement, add_measurement, calibrate, read_measurements
from toolkit.plan.proposal import measurement_of, plan_of

SETTINGS = ("parallel.recompute=false", "batch.micro_batch=1")


def measured(*overrides: str, wires: float, others: float, nodes: int = 8) -> Measurement:
    plan = plan_of(config(*SETTINGS, *overrides, nodes=nodes), hardware=H100)
    times = plan.speed.times
    on_wires = times.gather_s + times.peer_s + times.sync_s
    step_s = on_wires * wires + (times.total_s - on_wires) * others
    return replace(measurement_of(plan, step_s=step_s), run=" ".join(overrides))


def test_one_run_gives_one_factor_and_its_own_step() -> None:
    one = measured("parallel.stages=2", "parallel.zero_stage=1", wires=1.2, others=1.2)
    found = calibrate([one], gpu=H100.name)
    assert all(factor == pytest.approx(1.2, rel=1e-3) for factor in found.factors.values())
    plan = plan_of(config(*SETTINGS, "parallel.stages=2", "parallel.zero_stage=1"), hardware=H100, calibration=found)
    assert plan.speed.step_s == pytest.approx(one.step_s, rel=1e-3)
    assert plan.speed.spread == pytest.approx(0.05)


def test_runs_that_differ_tell_slow_wires_from_slow_arithmetic() -> None:
    runs = [
        measured("parallel.stages=1", f"parallel.zero_stage={zero}", wires=2.0, others=1.1, nodes=nodes)
        for zero in (1, 3)
        for nodes in (2, 8, 32, 128)
    ]
    found = calibrate(runs, gpu=H100.name)
    assert found.factors["wires"] == pytest.approx(2.0, rel=0.1)
    assert found.factors["products"] == pytest.approx(1.1, rel=0.1)
    other = measured("parallel.stages=1", "parallel.zero_stage=2", wires=2.0, others=1.1, nodes=16)
    cfg = config(*SETTINGS, "parallel.stages=1", "parallel.zero_stage=2", nodes=16)
    assert plan_of(cfg, hardware=H100, calibration=found).speed.step_s == pytest.approx(other.step_s, rel=0.05)


def test_memory_is_corrected_beside_the_states() -> None:
    plan = plan_of(config(*SETTINGS, "parallel.stages=2", "parallel.zero_stage=1"), hardware=H100)
    states = plan.memory[0].states_bytes
    peak = int(states + 0.8 * (plan.fullest_bytes - states))
    found = calibrate([measurement_of(plan, step_s=plan.speed.step_s, memory_bytes=peak)], gpu=H100.name)
    again = plan_of(plan.cfg, hardware=H100, calibration=found)
    assert again.fullest_bytes == pytest.approx(peak, rel=1e-3)
    assert again.memory[0].states_bytes == states


def test_another_device_is_not_calibrated_by_it() -> None:
    assert (
        calibrate([measured("parallel.stages=1", "parallel.zero_stage=1", wires=1, others=2)], gpu="A100")
        is UNCALIBRATED
    )


def test_measurements_are_kept_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert read_measurements(path) == []
    one = measured("parallel.stages=1", "parallel.zero_stage=1", wires=1, others=1)
    path.write_text(json.dumps(add_measurement([], one)))
    newer = replace(one, step_s=9.0)
    assert [m.step_s for m in read_measurements(path)] == [one.step_s]
    assert add_measurement(read_measurements(path), newer) == [asdict(newer)]
    many = [replace(one, run=str(n)) for n in range(40)]
    assert len(add_measurement(many, one)) == 20
    path.write_text("{}3")
    with pytest.raises(RecordError, match="delete it"):
        read_measurements(path)
