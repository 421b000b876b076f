"""What is printed of plans."""

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tests.unit.plan.test_search import H100, config
from toolkit.cli.plan import (
    between,
    calibration_dict,
    plans_dict,
    print_calibration,
    print_nodes,
    print_plans,
    write_figure,
)
from toolkit.plan.proposal import measurement_of
from toolkit.plan.report import plan_text
from toolkit.plan.search import rank_plans, scan_nodes


def wide() -> Console:
    return Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True)


def printed(console: Console) -> str:
    return str(console.file.getvalue())


def test_the_table_has_ten_lines_what_limits_each_and_the_plan_of_the_first() -> None:
    plans, console = rank_plans(config(), hardware=H100), wide()
    print_plans(plans, console)
    lines = printed(console).splitlines()
    assert "8 nodes of H100; times +-15%, uncalibrated" in lines[0]
    heading = next(n for n, line in enumerate(lines) if "stages x replicas" in line)
    assert [line.split()[0] for line in lines[heading + 1 : heading + 11]] == [str(n) for n in range(1, 11)]
    assert all(": " in line for line in lines[heading + 12 : heading + 22])
    assert f"{len(plans) - 10} more layouts fit" in lines[heading + 22]
    assert printed(console).endswith(plan_text(plans[0]))
    assert len(plans_dict(plans)["layouts"]) == 10


def test_intervals_have_the_digits_that_they_deserve() -> None:
    assert between(5.19, 7.02) == "5.2-7.0"
    assert between(0.0123, 0.0167) == "0.0123-0.0167"
    assert between(1234.0, 1670.0) == "1234-1670"


def test_nodes_calibration_and_picture(tmp_path: Path) -> None:
    plans, console = scan_nodes(config(), [4, 8], hardware=H100), wide()
    print_nodes(plans, console)
    write_figure(plans, tmp_path / "plan.svg", title="7b")
    assert (tmp_path / "plan.svg").read_text().startswith("<?xml")
    print_calibration([], console, path=tmp_path)
    one = measurement_of(plans[8], step_s=plans[8].speed.step_s * 1.1, memory_bytes=plans[8].fullest_bytes)
    print_calibration([one, replace(one, gpu="A100")], console, path=tmp_path)
    slow = measurement_of(plans[4], step_s=plans[4].speed.step_s * 1.4)
    print_calibration([one, replace(slow, run="slow")], console, path=tmp_path)
    text = printed(console)
    assert "plans are uncalibrated" in text
    assert "H100: calibrated by 1 run, times x 1.10, activations x 1.00; then +-5%" in text
    assert "A100: calibrated by 1 run" in text
    assert "H100: calibrated by 2 runs" in text
    assert " (products)" in text
    told = calibration_dict([one], path=tmp_path)["devices"]["H100"]
    assert told["measurements"][0]["step_s"] == one.step_s
