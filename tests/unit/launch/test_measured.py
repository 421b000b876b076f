"""Expected and measured: files in, values out."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.plan.test_search import H100, config
from toolkit.config.schema import ClusterSection
from toolkit.launch.expected import Expected, expect, find_expected, name_device, write_expected
from toolkit.launch.ledger import Attempt, begin_attempt, change_attempt
from toolkit.launch.measured import compare_text, describe_measured, keep_measurement, list_steady, measure
from toolkit.plan.calibration import calibrate, read_measurements
from toolkit.plan.hardware import CPU
from toolkit.plan.proposal import Plan, plan_of
from toolkit.rundir import RunDir

SETTINGS = ("parallel.stages=2", "parallel.zero_stage=1", "parallel.recompute=false", "batch.micro_batch=1")


@pytest.fixture
def plan() -> Plan:
    return plan_of(config(*SETTINGS, "checkpoint.save_every=10"), hardware=H100)


@pytest.fixture
def expected(plan: Plan, tmp_path: Path) -> Expected:
    return expect(plan, device=H100.name, site_dir=tmp_path / "site", attempts_before=0)


def make_run(root: Path, expected: Expected, name: str = "r") -> RunDir:
    run_dir = RunDir(root / "runs" / name)
    run_dir.root.mkdir(parents=True)
    write_expected(run_dir, expected)
    return run_dir


def add_attempt(run_dir: RunDir, attempt: str, *, steps: range, step_s: float, **more: Any) -> None:
    """Add an attempt whose first steps took ten times as long, as did those after a save and an evaluation."""
    begin_attempt(run_dir, Attempt(attempt=attempt, job_id="7", nodes=("n",), layout="", start_time=0.0))
    change_attempt(run_dir, attempt, first_step=steps[0] - 1)
    with run_dir.metrics_path.open("a", encoding="utf-8") as file:
        for step in steps:
            is_late = step < steps[0] + 5 or step % 10 == 1 or step % 15 == 1
            line = {"step": step, "attempt": attempt, "speed/step_s": step_s * (10 if is_late else 1), **more}
            file.write(json.dumps(line | ({"validation/loss": 1.0} if step % 15 == 0 else {})) + "\n")


def describe(run_dir: RunDir) -> tuple[dict[str, Any] | None, str]:
    told = describe_measured(run_dir)
    return told["measured"], told["comparison"]


def test_what_was_expected_is_read_back(plan: Plan, expected: Expected, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, expected)
    assert find_expected(run_dir) == expected
    assert expected.step_s == plan.speed.step_s
    assert expected.mfu == plan.speed.mfu
    assert expected.memory_bytes == plan.fullest_bytes
    assert (tmp_path / "site").is_dir()


def test_a_run_without_expectations_is_shown_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = RunDir(tmp_path)
    nothing = {"expected": None, "measured": None, "comparison": None}
    assert describe_measured(run_dir) == nothing
    run_dir.expected_path.write_text('{"step_s": 1.0}', encoding="utf-8")  # of another version
    assert describe_measured(run_dir) == nothing
    assert "left out: " in caplog.text
    assert "not known what was expected" in keep_measurement(run_dir)


def test_steady_steps_are_those_that_wait_for_nothing(expected: Expected, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, expected)
    add_attempt(run_dir, "7.0", steps=range(1, 60), step_s=2.0)
    with run_dir.metrics_path.open("a", encoding="utf-8") as file:
        file.write('{"step": 60, "atte')  # a line that is being written
    steps = list_steady(run_dir, expected)
    assert {step["speed/step_s"] for step in steps} == {2.0}
    assert [step["step"] for step in steps][-4:] == [9, 8, 7, 6]
    measured = measure(steps, expected)
    assert measured is not None
    assert (measured.step_s, measured.scatter, measured.memory_bytes) == (2.0, 0.0, None)
    assert measured.mfu * measured.step_s == pytest.approx(expected.mfu * expected.step_s)


def test_nothing_is_said_of_few_steps(expected: Expected, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, expected)
    assert describe(run_dir)[1].endswith("; measured after 20 steady steps (0 so far)")
    add_attempt(run_dir, "7.0", steps=range(1, 15), step_s=2.0)
    measured, text = describe(run_dir)
    assert measured is None
    assert text.endswith("; measured after 20 steady steps (8 so far)")
    assert keep_measurement(run_dir) == "not measured: 8 steady steps, 20 are needed"


def test_attempts_on_another_layout_are_left_out(expected: Expected, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, expected)
    add_attempt(run_dir, "7.0", steps=range(1, 60), step_s=2.0)
    write_expected(run_dir, replace(expected, attempts_before=1))  # the same again
    assert len(list_steady(run_dir, expected)) > 40
    assert find_expected(run_dir) == expected
    other = plan_of(config(*SETTINGS, "checkpoint.save_every=10", nodes=4), hardware=H100)
    write_expected(run_dir, expect(other, device=H100.name, site_dir=tmp_path, attempts_before=1))
    add_attempt(run_dir, "8.0", steps=range(60, 100), step_s=4.0)
    measured, _ = describe(run_dir)
    assert measured is not None
    assert (measured["step_s"], measured["num_steps"]) == (4.0, 31)


def test_the_line_says_both_and_when_the_interval_is_left(expected: Expected, tmp_path: Path) -> None:
    usual = {"memory/peak_gib": 34.1, "speed/data_fraction": 0.01, "speed/slowest_ratio": 1.02}
    as_planned = make_run(tmp_path, expected, "as-planned")
    add_attempt(as_planned, "7.0", steps=range(1, 40), step_s=expected.step_s * 1.1, **usual)
    measured, text = describe(as_planned)
    assert measured is not None
    assert text == (
        f"expected {expected.mfu:.1%} MFU ({expected.step_s:.3g} s a step, {expected.memory_bytes / 2**30:.1f} GiB), "
        f"measured {expected.mfu / 1.1:.1%} ({expected.step_s * 1.1:.3g} s, 34.1 GiB)"
    )
    slow = make_run(tmp_path, expected, "slow")
    add_attempt(slow, "7.0", steps=range(1, 40), step_s=expected.step_s * 1.3, **usual)
    assert describe(slow)[1].endswith(": 1.3 x the step, outside the plan's +-15%")  # and nobody knows why
    bound = make_run(tmp_path, expected, "bound")
    usual |= {"speed/data_fraction": 0.3, "speed/slowest_ratio": 1.6}
    add_attempt(bound, "7.0", steps=range(1, 40), step_s=expected.step_s * 1.3, **usual)
    assert describe(bound)[1].endswith(
        "; 30% of the time is waiting for data; the slowest rank computes 1.60 times as long as its peers"
    )


def test_memory_is_named_only_where_it_is_checked(expected: Expected) -> None:
    steps = [{"speed/step_s": expected.step_s}] * 20
    assert "memory unknown" in compare_text(expected, measure(steps, expected), num_steady=20)
    on_cpu = replace(expected, device_memory_bytes=None)
    text = compare_text(on_cpu, measure(steps, on_cpu), num_steady=20)
    assert "GiB" not in text
    assert "unknown" not in text


def test_what_was_measured_corrects_the_next_plan(plan: Plan, expected: Expected, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, expected)
    step_s = expected.step_s * 1.4
    add_attempt(run_dir, "7.0", steps=range(1, 60), step_s=step_s, **{"memory/peak_gib": 50.0})
    path = tmp_path / "site" / "calibration.json"
    assert keep_measurement(run_dir) == f"later plans for H100 are corrected by this run: {path}"
    assert keep_measurement(run_dir)  # an attempt later: the same run once more
    assert [one.run for one in read_measurements(path)] == ["r"]
    calibration = calibrate(read_measurements(path), gpu=H100.name)
    again = plan_of(plan.cfg, hardware=H100, calibration=calibration)
    assert again.speed.step_s == pytest.approx(step_s, rel=1e-3)
    assert again.fullest_bytes / 2**30 == pytest.approx(50.0, rel=1e-3)
    later = expect(again, device=H100.name, site_dir=tmp_path, attempts_before=0)
    assert later.calibrated_by == ("r",)
    assert later.planned == expected.planned  # uncalibrated: corrections are not corrected again


def test_a_run_that_was_disturbed_corrects_nothing(expected: Expected, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, expected)
    for attempt in range(6):
        steps = range(1 + 20 * attempt, 21 + 20 * attempt)
        add_attempt(run_dir, f"7.{attempt}", steps=steps, step_s=1.0 + attempt % 3)
    assert keep_measurement(run_dir) == "later plans are not corrected by this run: steps scatter by 100%"
    assert list((tmp_path / "site").iterdir()) == []


def test_a_folder_that_is_not_on_the_node_is_not_made_there(expected: Expected, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, expected)
    add_attempt(run_dir, "7.0", steps=range(1, 60), step_s=2.0)
    (tmp_path / "site").rmdir()
    assert keep_measurement(run_dir).endswith(f"there is no {tmp_path / 'site'} on this node")
    assert not (tmp_path / "site").exists()


def test_a_folder_that_cannot_be_made_does_not_refuse_the_run(
    expected: Expected, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("a file", encoding="utf-8")
    make_run(tmp_path, replace(expected, site_dir=str(tmp_path / "home" / "site")))
    assert "will not correct later plans" in caplog.text


def test_runs_that_end_at_once_are_all_kept(expected: Expected, tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(4)]
    for name in names:
        add_attempt(make_run(tmp_path, expected, name), "7.0", steps=range(1, 60), step_s=2.0)
    keep = (
        "import sys, pathlib; from toolkit.launch.measured import keep_measurement; from toolkit.rundir import RunDir; "
        "sys.stdin.read(); keep_measurement(RunDir(pathlib.Path(sys.argv[1])))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", keep, tmp_path / "runs" / name], stdin=subprocess.PIPE)
        for name in names
    ]
    for writer in writers:  # they stand ready
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(timeout=60) for writer in writers] == [0] * len(names)
    assert sorted(one.run for one in read_measurements(tmp_path / "site" / "calibration.json")) == names


def test_a_cpu_is_another_device_where_a_rank_has_less_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    emulated = ClusterSection(nodes=2, gpus_per_node=1, cpus_per_task=4, scheduler="local")
    assert name_device(H100, emulated) == "H100"
    assert name_device(CPU, emulated) == "CPU core, 2 x 2 on 4"
    assert name_device(CPU, replace(emulated, nodes=8)) == "CPU core, 8 x 1 on 4"
    assert name_device(CPU, replace(emulated, cpus_per_task=1)) == "CPU core, 2 x 1 on 4"
    assert name_device(CPU, replace(emulated, scheduler="slurm")) == "CPU core, 4 a rank"
