"""Which scheduler there is."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.cluster.base import Cluster
from toolkit.cluster.local import LocalCluster
from toolkit.cluster.slurm import ANSWER_S, PATIENCE_S, SlurmCluster
from toolkit.errors import ClusterError


def open_cluster(
    scheduler: str, *, state_dir: Path, patience_s: float = PATIENCE_S, answer_s: float = ANSWER_S
) -> Cluster:
    """Open the scheduler that is asked for; `auto` takes Slurm where this machine belongs to one.

    Args:
        scheduler: auto, slurm or local.
        state_dir: where emulated nodes keep their jobs.
        patience_s: how long a scheduler that does not answer is asked again.
        answer_s: how long one of its commands may take.

    Raises:
        ClusterError: Slurm is asked for and is not here. One that does not answer says so at its first verb.
    """
    has_slurm = shutil.which("sbatch") is not None
    if scheduler == "slurm" and not has_slurm:
        raise ClusterError(
            "cluster.scheduler=slurm, but there is no sbatch here\n  submit from a login node of the cluster\n"
            "  or set cluster.scheduler=local to emulate nodes on this machine"
        )
    if scheduler == "slurm" or (scheduler == "auto" and has_slurm and _is_configured()):
        return SlurmCluster(patience_s=patience_s, answer_s=answer_s)
    return LocalCluster(state_dir)


def _is_configured() -> bool:
    """Tell a login node from a machine where Slurm's commands lie about without a cluster."""
    places = (
        Path("/etc/slurm/slurm.conf"),
        Path("/etc/slurm-llnl/slurm.conf"),
        Path("/run/slurm/conf/slurm.conf"),
    )
    return "SLURM_CONF" in os.environ or "SLURM_CONF_SERVER" in os.environ or any(p.exists() for p in places)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnJob:
    """The job that this process belongs to."""

    job_id: str
    attempt: str
    """`<job id>.<restart count>`."""
    cluster: Cluster


def read_own_job(environ: Mapping[str, str], *, patience_s: float, answer_s: float = ANSWER_S) -> OwnJob:
    """Find the job of this process in its environment, which the job script has set.

    Args:
        environ: variables of this process.
        patience_s: how long a scheduler that does not answer is asked again.
        answer_s: how long one of its commands may take.

    Raises:
        ClusterError: it belongs to none.
    """
    missing = [name for name in ("SLURM_JOB_ID", "TOOLKIT_ATTEMPT", "TOOLKIT_CLUSTER") if not environ.get(name)]
    if missing:
        raise ClusterError(f"not inside a job: {', '.join(missing)} not set\n  use: python submit.py --nodes N")
    state_dir = Path(environ.get("TOOLKIT_LOCAL_STATE", "."))
    cluster = open_cluster(environ["TOOLKIT_CLUSTER"], state_dir=state_dir, patience_s=patience_s, answer_s=answer_s)
    return OwnJob(job_id=environ["SLURM_JOB_ID"], attempt=environ["TOOLKIT_ATTEMPT"], cluster=cluster)
