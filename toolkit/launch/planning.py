"""Plans without a submission, with what the site knows of its devices and of earlier runs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.config.schema import ClusterSection, RunConfig
from toolkit.launch.expected import name_device
from toolkit.plan.calibration import CALIBRATION, Calibration, Measurement, calibrate, read_measurements
from toolkit.plan.hardware import Hardware, find_hardware, read_hardware, share_cores
from toolkit.plan.proposal import Plan
from toolkit.plan.search import Wish, find_nodes, plot_counts, rank_plans, scan_nodes


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What is kept beside a site profile."""

    folder: Path
    hardware: Mapping[str, Hardware]
    """Devices that the site describes itself (hardware.yaml)."""
    measurements: tuple[Measurement, ...]
    """Of its runs (calibration.json)."""

    @property
    def calibration_path(self) -> Path:
        """Where the measurements are."""
        return self.folder / CALIBRATION

    def find_hardware(self, section: ClusterSection) -> Hardware:
        """Find the device of a rank among the site's own and the known ones; emulated nodes share this machine's cores.

        Args:
            section: filled, and with `local` as the scheduler where nodes are emulated.
        """
        found = find_hardware(section.gpu_type, site=self.hardware)
        if found.is_gpu or section.scheduler != "local":
            return found
        return share_cores(found, ranks=section.nodes * (section.gpus_per_node or 1), cores=os.cpu_count() or 1)

    def calibrate(self, device: str) -> Calibration:
        """Say what plans for a device are corrected by, by the name that `name_device` gives it."""
        return calibrate(self.measurements, gpu=device)


def read_site(folder: Path) -> Site:
    """Read what the folder of a site profile holds besides it."""
    hardware = folder / "hardware.yaml"
    return Site(
        folder=folder.absolute(),
        hardware=read_hardware(hardware) if hardware.is_file() else {},
        measurements=tuple(read_measurements(folder / CALIBRATION)),
    )


def rank_layouts(cfg: RunConfig, site: Site, *, wish: Wish | None) -> list[Plan]:
    """List the layouts that fit, the best first; with a wish, on the fewest nodes that fulfil it.

    Raises:
        ConfigError: nothing fits, or the wish cannot be fulfilled.
    """
    hardware = site.find_hardware(cfg.cluster)
    calibration = site.calibrate(name_device(hardware, cfg.cluster))
    if wish is not None:
        found = find_nodes(cfg, wish, hardware=hardware, calibration=calibration)
        cfg = replace(cfg, cluster=found.cfg.cluster)
    return rank_plans(cfg, hardware=hardware, calibration=calibration)


def plan_over_nodes(cfg: RunConfig, site: Site) -> dict[int, Plan]:
    """Plan the run on numbers of nodes around the one that is asked for."""
    hardware = site.find_hardware(cfg.cluster)
    counts = plot_counts(cfg.cluster.nodes)
    return scan_nodes(cfg, counts, hardware=hardware, calibration=site.calibrate(name_device(hardware, cfg.cluster)))
