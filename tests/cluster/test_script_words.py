"""What the values of a job's script come to on a real Slurm."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.runs import CHECKOUT
from tests.slurm_sites import make_job
from toolkit.cluster.base import JobState, JobStatus
from toolkit.cluster.slurm import SlurmCluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]


def end_of(job_id: str) -> JobStatus:
    deadline = time.monotonic() + 60
    while (status := SlurmCluster().state(job_id)).state.is_live and time.monotonic() < deadline:
        time.sleep(0.2)
    return status


def test_sbatch_reads_a_value_as_it_was_given(tmp_path: Path) -> None:
    value = f"""a b'c"d$(touch {tmp_path}/ran) `touch {tmp_path}/ran` #e %j ~ * --hold '"'"""
    spec = make_job(None, time_limit_s=300, sbatch_extra={"comment": value, "begin": "now+1hour"}, log_dir=tmp_path)
    job_id = SlurmCluster().submit(spec, script_path=tmp_path / "job.sbatch")
    said = subprocess.run(["scontrol", "show", "job", job_id], capture_output=True, text=True, check=True).stdout
    SlurmCluster().cancel(job_id)
    (told,) = re.findall(r"Comment=(.*)", said)
    assert told.rstrip() == value
    assert "Reason=BeginTime" in said or "Reason=None" in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", ["exit 0", "cat <<E", "source /dev/stdin <<< 'exit 0'"])
def test_a_job_whose_setup_ends_it_has_failed(line: str, tmp_path: Path) -> None:
    spec = make_job(
        None, time_limit_s=300, setup=(line,), log_dir=tmp_path, work_dir=CHECKOUT, command=("touch", f"{tmp_path}/ran")
    )
    job_id = SlurmCluster().submit(spec, script_path=tmp_path / "job.sbatch")
    assert end_of(job_id).state is JobState.FAILED
    assert "see cluster.setup" in (tmp_path / f"{job_id}.batch.out").read_text(encoding="utf-8")
    assert not (tmp_path / "ran").exists()
