"""What `toolkit plan` prints: the table of layouts, the plan of the best, the picture over nodes."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from toolkit import storage
from toolkit.monitor.metrics import short
from toolkit.plan.calibration import UNCALIBRATED, Calibration, Measurement, calibrate
from toolkit.plan.figure import draw_plans
from toolkit.plan.proposal import Plan
from toolkit.plan.report import PlanRow, choose_unit, count_runs, plan_dict, plan_rows, plan_text, say_gpu_hours

_SHOWN = 10
_WIDTH = 105  # columns that a table needs; a narrower terminal wraps its lines
_STYLES = {"fits": "", "tight": "yellow", "refused": "red"}


def print_plans(plans: Sequence[Plan], console: Console) -> None:
    """Print the ten best layouts as a table, what limits each, then the plan of the first."""
    rows = plan_rows(plans[:_SHOWN])
    _widen(console).print(_table(rows, plans[0]))
    console.print("what limits each, and what would relax it:")
    for number, row in enumerate(rows, 1):
        console.print(f"{number:>2}  {row.limit}: {row.remedy}", markup=False)
    left = len(plans) - len(rows)
    if left > 0:
        console.print(f"{left} more layouts fit")
    console.print("the first:\n" + plan_text(plans[0]), end="", markup=False)


def _widen(console: Console) -> Console:
    """Give a console on which a table is not cut."""
    return console if console.width >= _WIDTH else Console(file=console.file, width=_WIDTH, highlight=False)


def plans_dict(plans: Sequence[Plan]) -> dict[str, Any]:
    """Give the same as plain values: the best plan in full, and the lines of the table."""
    return {**plan_dict(plans[0]), "layouts": [asdict(row) for row in plan_rows(plans[:_SHOWN])]}


def _table(rows: Sequence[PlanRow], first: Plan) -> Table:
    spread, runs = first.speed.spread, first.calibration.runs
    title = f"{rows[0].nodes} nodes of {first.hardware.name}; times +-{spread:.0%}, {count_runs(runs)}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="")
    for name in (
        "",
        "stages x replicas, ZeRO, micro",
        "s/step",
        "tok/s",
        "MFU",
        "causal",
        "GiB",
        "bubble",
        "GPU-h",
        "lasts",
    ):
        table.add_column(name, justify="left" if name.startswith("stages") else "right", no_wrap=True)
    for number, row in enumerate(rows, 1):
        room = f"{row.memory_gib:.1f} {row.memory_part:.0%}" if row.memory_part else f"{row.memory_gib:.2f}"
        table.add_row(
            str(number),
            _layout(row),
            between(row.step_low_s, row.step_high_s),
            short(row.tokens_per_s),
            f"{row.mfu:.1%}",
            f"{row.causal_mfu:.1%}",
            room,
            f"{row.bubble:.0%}",
            say_gpu_hours(row.gpu_hours),
            _lasting(row.days, spread),
            style=_STYLES[row.verdict],
        )
    return table


def _layout(row: PlanRow) -> str:
    again = ", recompute" if row.recompute else ""
    return f"{row.stages}x{row.replicas}, ZeRO {row.zero_stage}, {row.num_micro_batches}x{row.micro_batch}{again}"


def between(low: float, high: float) -> str:
    """Write an interval with as many digits as its width deserves."""
    digits = max(0, 1 - math.floor(math.log10(high - low))) if high > low > 0 else 2
    return f"{low:.{digits}f}-{high:.{digits}f}"


def _lasting(days: float, spread: float) -> str:
    """Write how long a run lasts, in the largest unit that makes one of it."""
    unit = choose_unit(days * 86400)
    lasts = days * 86400 / unit.seconds
    return f"{between(lasts * (1 - spread), lasts * (1 + spread))} {unit.short}"


def print_nodes(plans: dict[int, Plan], console: Console) -> None:
    """Print the best layout on each number of nodes."""
    table = Table(box=None, pad_edge=False)
    for name in ("nodes", "layout", "s/step", "MFU", "GiB", "GPU-hours", "lasts"):
        table.add_column(name, justify="left" if name == "layout" else "right", no_wrap=True)
    for nodes, plan in sorted(plans.items()):
        row = plan_rows([plan])[0]
        table.add_row(
            str(nodes),
            _layout(row),
            between(row.step_low_s, row.step_high_s),
            f"{row.mfu:.1%}",
            f"{row.memory_gib:.1f}",
            f"{row.gpu_hours:,.0f}",
            _lasting(row.days, plan.speed.spread),
        )
    _widen(console).print(table)


def write_figure(plans: dict[int, Plan], path: Path, *, title: str) -> None:
    """Write the picture of time and memory over nodes.

    Raises:
        StorageError: it cannot be written.
    """
    storage.write_atomic(str(path), draw_plans(plans, title=title).encode())


def print_calibration(measurements: Sequence[Measurement], console: Console, *, path: Path) -> None:
    """Say what plans for each kind of device are corrected by, and by which runs."""
    if not measurements:
        console.print(f"no run was measured here yet: plans are uncalibrated, +-{UNCALIBRATED.spread:.0%}")
        console.print(f"runs with 20 steady steps are kept in {path}", markup=False)
        return
    for device, mine in _by_device(measurements).items():
        calibration = calibrate(mine, gpu=device)
        console.print(
            f"{device}: {count_runs(calibration.runs)}, times x {_factors(calibration)}"
            + (f", activations x {calibration.activations:.2f}" if _is_memory_known(mine) else "")
            + f"; then +-{calibration.spread:.0%}",
            markup=False,
        )
        _widen(console).print(_runs_table(mine))
    console.print(f"kept in {path}; a run is left out by deleting it there", markup=False)


def _is_memory_known(measurements: Sequence[Measurement]) -> bool:
    return any(one.memory_bytes is not None for one in measurements)


def _by_device(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    names = dict.fromkeys(one.gpu for one in measurements)
    return {name: [one for one in measurements if one.gpu == name] for name in names}


def _factors(calibration: Calibration) -> str:
    """Write the factors of parts; where all are the same, once."""
    shown = [f"{factor:.2f}" for factor in calibration.factors.values()]
    if len(set(shown)) == 1:
        return shown[0]
    return ", ".join(f"{factor} ({part})" for factor, part in zip(shown, calibration.factors, strict=True))


def _runs_table(measurements: Sequence[Measurement]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("run, newest last", "planned s/step", "measured", "ratio", "planned GiB", "measured"):
        table.add_column(name, justify="left" if name.startswith("run") else "right")
    for one in measurements:
        is_known = one.memory_bytes is not None and one.planned_memory_bytes is not None
        rooms = [f"{(size or 0) / 2**30:.1f}" for size in (one.planned_memory_bytes, one.memory_bytes)]
        table.add_row(
            one.run,
            f"{one.planned_step_s:.3g}",
            f"{one.step_s:.3g}",
            f"{one.step_s / one.planned_step_s:.2f}",
            *(rooms if is_known else ("-", "-")),
        )
    return table


def calibration_dict(measurements: Sequence[Measurement], *, path: Path) -> dict[str, Any]:
    """Give the same as plain values."""
    devices = {
        name: {**asdict(calibrate(mine, gpu=name)), "measurements": [asdict(one) for one in mine]}
        for name, mine in _by_device(measurements).items()
    }
    return {"path": str(path), "devices": devices}
