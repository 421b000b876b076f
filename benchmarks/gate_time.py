"""How long the gate takes: all that `submit` looks at before the queue, on emulated nodes and on a real Slurm.

Each round makes all checks at once as `submit` does, then each group alone; the kinds of cluster take turns. A Slurm of
four nodes is started for it where there is one to start. Python's start and the plan are not counted; they are told.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from emulated import CHECKOUT, make_dataset

from toolkit.config.load import load_config
from toolkit.launch.gate.checks import GROUPS, run_checks
from toolkit.launch.planning import Site
from toolkit.launch.submit import look_around

_SITES = [sys.executable, str(CHECKOUT / "tests" / "devcluster" / "sites.py")]


@dataclass(slots=True)
class Times:
    """Seconds of each round."""

    plan_s: list[float] = field(default_factory=list)
    gate_s: list[float] = field(default_factory=list)
    group_s: dict[str, list[float]] = field(default_factory=dict)


def main() -> None:
    """Time the gate and print a table, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="of each kind of cluster (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=4, help="nodes of the run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gate") as directory, slurm(Path(directory)) as kinds:
        dataset = make_dataset(Path(directory) / "data")
        times = {kind: Times() for kind in kinds}
        for _ in range(asked.rounds):
            for kind, found in times.items():
                measure(found, kind, Path(directory) / "runs", dataset, nodes=asked.nodes)
    figures = {kind: summarize(found) for kind, found in times.items()}
    for kind, found in figures.items():
        parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in found["groups_s"].items())
        print(
            f"{kind}: gate {found['gate_s']:.3f} s (slowest {found['gate_max_s']:.3f}), plan {found['plan_s']:.3f}; "
            f"alone: {parts}"
        )
    if asked.json:
        print(json.dumps(figures))


@contextlib.contextmanager
def slurm(directory: Path) -> Iterator[tuple[str, ...]]:
    """Start a Slurm where there is one to start; give the kinds of clusters that can be measured."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if not all(shutil.which(name, path=path) for name in ("slurmctld", "slurmd", "munged", "sbatch")):
        yield ("local",)
        return
    place = directory / "slurm"
    subprocess.run([*_SITES, "up", "mini", place, "--nodes", "4"], check=True, timeout=90, capture_output=True)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(place / "etc" / "slurm.conf")
    try:
        yield ("local", "slurm")
    finally:
        subprocess.run([*_SITES, "down", place], check=False, timeout=90)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def measure(times: Times, kind: str, root: Path, dataset: Path, *, nodes: int) -> None:
    """Make all checks of a run once, and each group alone."""
    settings = [f"cluster.scheduler={kind}", f"run.root={root}", f"data.path={dataset}", "model.vocab_size=320"]
    settings += [
        f"cluster.nodes={nodes}",
        "cluster.gpus_per_node=1",
        'cluster.setup=["export TRIED=1"]',
        "monitor.wandb=auto",
    ]
    loaded = load_config(CHECKOUT / "configs" / "runs" / "tiny-cpu.yaml", overrides=settings)
    begun = time.perf_counter()
    context = look_around(loaded, Site(folder=root, hardware={}, measurements=()))
    planned = time.perf_counter()
    run_checks(context, accept=())
    times.plan_s.append(planned - begun)
    times.gate_s.append(time.perf_counter() - planned)
    for group in GROUPS:
        begun = time.perf_counter()
        group.look(context)
        times.group_s.setdefault(group.names[0], []).append(time.perf_counter() - begun)


def summarize(times: Times) -> dict[str, object]:
    """Give medians, and the slowest gate."""
    return {
        "gate_s": statistics.median(times.gate_s),
        "gate_max_s": max(times.gate_s),
        "plan_s": statistics.median(times.plan_s),
        "groups_s": {name: statistics.median(seconds) for name, seconds in times.group_s.items()},
        "rounds": len(times.gate_s),
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
