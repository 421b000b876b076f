"""A run as the gate sees it, for tests of single checks."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from toolkit.cluster.accounting import Accounting
from toolkit.cluster.base import Cluster, View
from toolkit.cluster.local import LocalCluster
from toolkit.cluster.partitions import PartitionLimits
from toolkit.cluster.spec import JobSpec
from toolkit.config.load import load_config
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding
from toolkit.launch.gate.mounts import Mount
from toolkit.launch.planning import Site
from toolkit.launch.submit import look_around

CONFIG = Path(__file__).parents[1] / "configs" / "runs" / "tiny-cpu.yaml"


class FakeSlurm:
    """Says what it is told to."""

    name = "slurm"

    def __init__(
        self,
        *,
        view: View | None = None,
        said: str | Exception = "",
        accounts: Accounting | None = None,
        is_here: bool = False,
    ) -> None:
        self.view, self.said, self.accounts, self.is_here = view, said, accounts, is_here

    def look(self) -> View:
        assert self.view is not None
        return self.view

    def check(self, spec: JobSpec) -> str:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    def accounting(self) -> Accounting | None:
        return self.accounts

    def runs_here(self, partition: str) -> bool:
        return self.is_here


def make_context(root: Path, *settings: str, cluster: object = None, **fields: Any) -> Context:
    """Take a tiny run on emulated nodes, or on a cluster that says what it is told to."""
    fixed = ["cluster.scheduler=local", f"run.root={root}", "model.vocab_size=320"]
    loaded = load_config(CONFIG, overrides=[*fixed, *settings])
    context = look_around(loaded, Site(folder=root, hardware={}, measurements=()))
    given: dict[str, Any] = {
        "environ": {},
        "home": root,
        "prefix": Path("/usr"),
        "python": Path("/usr/bin/python3"),
        "mounts": (),
    }
    given |= {"cluster": cast("Cluster", cluster or LocalCluster(root / ".cluster")), **fields}
    return replace(context, **given)


def with_spec(context: Context, **fields: Any) -> Context:
    """Ask for another job."""
    return replace(context, spec=replace(context.spec, **fields))


def verdicts(findings: list[Finding]) -> dict[str, str]:
    """Give the verdict of each check, the worst of several."""
    order = ("ok", "note", "warning", "refused")
    found: dict[str, str] = {}
    for one in findings:
        found[one.check] = max(found.get(one.check, "ok"), one.verdict.value, key=order.index)
    return found


def only(findings: list[Finding], check: str) -> Finding:
    """Give the one finding of a check."""
    (found,) = (one for one in findings if one.check == check)
    return found


GPUS = PartitionLimits(
    name="gpu",
    is_default=True,
    max_time_s=48 * 3600,
    default_time_s=None,
    num_nodes=4,
    nodes_usable=4,
    cpus_per_node=64,
    mem_per_node_mib=512_000,
    gpus_per_node=8,
    gpu_type="h100",
)
NFS = Mount("/shared", "nfs4", "server:/shared")
DISK = Mount("/", "ext4", "/dev/sda1")
