"""What the checks judge: a run as it would be submitted, and where it is submitted from. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.cluster.base import Cluster
from toolkit.cluster.partitions import PartitionLimits
from toolkit.cluster.spec import JobSpec
from toolkit.config.schema import ClusterSection, RunConfig
from toolkit.errors import Problem
from toolkit.launch.gate.mounts import Mount
from toolkit.plan.search import Plan
from toolkit.rundir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """A run as it would be submitted; nothing has been written yet."""

    plan: Plan
    too_large: Problem | None
    """Why the plan, the nearest one to fit, does not; None: it does."""
    cluster: Cluster
    spec: JobSpec
    partition: PartitionLimits
    run_dir: RunDir
    asked: ClusterSection
    """The job as it was asked for, before the shell and the partition filled what was open."""
    environ: Mapping[str, str]
    """Of the shell that submits; the job gets a part of it."""
    home: Path
    python: Path
    """The interpreter of every rank."""
    prefix: Path
    """Directory of its environment."""
    mounts: tuple[Mount, ...]
    """File systems of this machine."""
    left_out: Mapping[str, str]
    """Nodes that the job does not use because of what they did before, with the reason."""
    num_rehearsals: int = 0
    """Jobs of a rehearsal that are handed in before the run."""

    @property
    def cfg(self) -> RunConfig:
        """Give the configuration, with nothing open."""
        return self.plan.cfg

    @property
    def is_emulated(self) -> bool:
        """Whether the nodes are processes of this machine."""
        return self.cluster.name == "local"
