"""What a plan said of a run, kept beside it as plain values: what was measured is held against it."""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit import records, storage
from toolkit.cluster.tasks import share_threads
from toolkit.config.schema import ClusterSection
from toolkit.errors import RecordError
from toolkit.plan.calibration import Measurement
from toolkit.plan.hardware import Hardware
from toolkit.plan.proposal import Plan, measurement_of
from toolkit.rundir import RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What was expected of a run when it was submitted, on the layout it has since then."""

    step_s: float
    spread: float
    """Part by which times may be off either way."""
    tokens_per_step: int
    tokens_per_s: float
    mfu: float
    """Attention counted in full."""
    causal_mfu: float
    """Attention counted by half."""
    memory_bytes: int
    """Peak of the fullest stage."""
    bubble: float
    run_s: float
    gpu_hours: float
    layout: Mapping[str, Any]
    """Nodes, stages, replicas, ZeRO, batch: the fields of plan.layout.Layout."""
    device: str
    """The name that runs on such devices are kept under: see `name_device`."""
    device_memory_bytes: int | None
    """None: not checked."""
    calibrated_by: tuple[str, ...]
    """Runs that the plan was corrected by."""
    planned: Mapping[str, float]
    """Seconds of each part of a step as an uncalibrated plan says."""
    planned_memory_bytes: int
    """What an uncalibrated plan says of the fullest stage."""
    states_bytes: int
    """What of these is states."""
    save_every: int | None
    """Steps between saves; None: not known before."""
    site_dir: str
    """Folder of the site profile: what was measured is kept there."""
    attempts_before: int
    """Attempts of the run on other layouts, before this one."""

    def measurement(self, run: str, *, step_s: float, memory_bytes: int | None) -> Measurement:
        """Set what was measured against what an uncalibrated plan says."""
        return Measurement(
            run=run,
            gpu=self.device,
            step_s=step_s,
            planned=self.planned,
            memory_bytes=memory_bytes,
            planned_memory_bytes=self.planned_memory_bytes,
            states_bytes=self.states_bytes,
        )


def name_device(hardware: Hardware, section: ClusterSection) -> str:
    """Say under which name runs on a device are kept: of CPUs it also says what a rank has of them.

    A rank on a CPU is as fast as the cores that it has, and emulated nodes share those of one machine: a run that
    was slow for want of cores says nothing about one that has enough.

    Args:
        hardware: the device.
        section: with nothing open, and `local` as the scheduler where nodes are emulated.
    """
    if hardware.is_gpu:
        return hardware.name
    if section.scheduler != "local":
        return f"{hardware.name}, {section.cpus_per_task} a rank"
    ranks, cores = section.nodes * (section.gpus_per_node or 1), os.cpu_count() or 1
    threads = share_threads(ranks, cpus_per_task=section.cpus_per_task or 1)
    return f"{hardware.name}, {ranks} x {threads} on {cores}"


def expect(plan: Plan, *, device: str, site_dir: Path, attempts_before: int) -> Expected:
    """Take from a plan what a run is held against."""
    speed, layout, every = plan.speed, plan.layout, plan.cfg.checkpoint.save_every
    plain = measurement_of(plan, step_s=speed.step_s)
    assert plain.planned_memory_bytes is not None, "a plan says what memory it needs"
    return Expected(
        step_s=speed.step_s,
        spread=speed.spread,
        tokens_per_step=plan.cfg.batch.tokens_per_step,
        tokens_per_s=speed.tokens_per_s,
        mfu=speed.mfu,
        causal_mfu=speed.causal_mfu,
        memory_bytes=plan.fullest_bytes,
        bubble=speed.bubble,
        run_s=speed.run_s,
        gpu_hours=speed.gpu_hours,
        layout=asdict(layout),
        device=device,
        device_memory_bytes=plan.hardware.memory_bytes,
        calibrated_by=plan.calibration.runs,
        planned=plain.planned,
        planned_memory_bytes=plain.planned_memory_bytes,
        states_bytes=plain.states_bytes,
        save_every=every if isinstance(every, int) else None,
        site_dir=str(site_dir),
        attempts_before=attempts_before,
    )


def write_expected(run_dir: RunDir, expected: Expected) -> None:
    """Write what is expected; attempts on the same layout and devices go on counting.

    The folder of the site profile is made here, on the login node: a compute node that does not find it has another
    home, and leaves it alone.
    """
    former = find_expected(run_dir)
    if former is not None and (former.layout, former.device) == (expected.layout, expected.device):
        expected = dataclasses.replace(expected, attempts_before=former.attempts_before)
    storage.write_atomic(str(run_dir.expected_path), (json.dumps(asdict(expected), indent=1) + "\n").encode())
    try:
        Path(expected.site_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("%s cannot be made (%s): runs will not correct later plans", expected.site_dir, error.strerror)


def find_expected(run_dir: RunDir) -> Expected | None:
    """Find what was expected of a run; None: nothing, or another version of the toolkit wrote it."""
    try:
        return records.read_record(run_dir.expected_path, Expected)
    except RecordError as error:
        records.say_once(f"left out: {error}")
        return None
