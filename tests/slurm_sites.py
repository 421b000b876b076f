"""Sites whose Slurm was recorded: what scontrol said of partitions, nodes and configuration.

Recorded on Slurm 22.05, as an ordinary user (blanks before the columns' ends left out). `acct` has accounting and two
kinds of GPU; `mig` has slices, two kinds on a node, and kinds that only features tell; `private` hides its nodes;
`strict` has GPUs without a kind, and small limits. `slurm-24.11` and `slurm-26.05` are `acct` on those releases.
"""

from dataclasses import replace
from pathlib import Path

from toolkit.cluster.base import View
from toolkit.cluster.inventory import read_inventory, read_loads
from toolkit.cluster.partitions import NodeLoad, PartitionLimits
from toolkit.cluster.spec import JobSpec
from toolkit.cluster.view import read_view

RECORDED = Path(__file__).parent / "unit" / "cluster" / "recorded"


def read_recorded(*words: str) -> str:
    """Read a file of what was recorded."""
    return RECORDED.joinpath(*words).read_text(encoding="utf-8")


def read_site(name: str, *, groups: tuple[str, ...] = ("games",)) -> tuple[list[PartitionLimits], list[NodeLoad]]:
    """Read the partitions and nodes of a site as `SlurmCluster.limits` does."""
    nodes = read_recorded(name, "nodes.txt") if (RECORDED / name / "nodes.txt").is_file() else None
    partitions, config = read_recorded(name, "partitions.txt"), read_recorded(name, "config.txt")
    limits, loads = read_inventory(partitions, nodes, config=config, groups=groups)
    return list(limits), list(loads)


def view_site(name: str, *, jobs: str = "", reservations: str = "No reservations in the system") -> View:
    """Look at a site on which nothing runs."""
    limits, nodes = read_site(name)
    told = RECORDED / name / "loads.txt"
    inventory = read_loads((tuple(limits), tuple(nodes)), told.read_text(encoding="utf-8") if told.is_file() else None)
    return read_view(inventory, jobs, reservations, config=read_recorded(name, "config.txt"), now=1.8e9)


def change_nodes(view: View, states: dict[str, str]) -> View:
    """Put nodes into other states."""
    nodes = tuple(
        replace(node, state=states[node.name], is_usable=False, is_free=False) if node.name in states else node
        for node in view.nodes
    )
    return replace(view, nodes=nodes)


def make_job(partition: str | None, *, nodes: int = 1, **fields: object) -> JobSpec:
    """Ask for a job with one task a node."""
    spec = JobSpec(
        name="run", command=("true",), work_dir=Path("/"), log_dir=Path("/logs"), nodes=nodes, tasks_per_node=1,
        gpus_per_node=0, partition=partition,
    )  # fmt: skip
    return replace(spec, **fields)  # type: ignore[arg-type]
