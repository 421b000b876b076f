"""The newest job of a run directory, be it a run or its rehearsal."""

from pathlib import Path

from toolkit.cluster.base import Cluster, JobStatus
from toolkit.cluster.choose import open_cluster
from toolkit.launch.ledger import find_job_record
from toolkit.rundir import RunDir


def state_dir(root: Path) -> Path:
    """Say where emulated nodes keep their jobs: beside the runs they belong to."""
    return root.absolute() / ".cluster"


def find_job(run_dir: RunDir) -> tuple[Cluster, str] | None:
    """Find the newest job of a run; None: none was submitted."""
    record = find_job_record(run_dir)
    if record is None:
        return None
    return open_cluster(record.scheduler, state_dir=state_dir(run_dir.root.parent)), record.job_id


def job_status(run_dir: RunDir) -> JobStatus | None:
    """Ask for the state of the newest job of a run."""
    job = find_job(run_dir)
    return job[0].state(job[1]) if job else None
