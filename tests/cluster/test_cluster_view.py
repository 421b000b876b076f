"""The cluster at a glance, on a real Slurm: what is broken, what runs and waits, and whether the answer is right."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.devcluster.sites import Site
from toolkit.cluster.base import JobState
from toolkit.cluster.slurm import SlurmCluster
from toolkit.config.schema import ClusterSection
from toolkit.launch.outlook import look_ahead

pytestmark = pytest.mark.cluster

MINUTE_S = 60


def submit(*words: str) -> str:
    """Hand in a job that takes whole nodes."""
    command = ["sbatch", "--parsable", "--job-name=view", "--output=/dev/null", "--exclusive", "--wrap=sleep 3000"]
    return subprocess.run([*command, *words], check=True, capture_output=True, text=True).stdout.strip()


def wait_for(job_id: str, wanted: JobState, *, is_planned: bool) -> Any:
    """Wait until a job has a state, and Slurm has planned it."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        job = next((job for job in SlurmCluster().look().jobs if job.job_id == job_id), None)
        if job is not None and job.state is wanted and (job.start_time is not None or not is_planned):
            return job
        time.sleep(0.3)
    raise AssertionError(f"job {job_id} is not {wanted.value}: {job}")


@pytest.fixture
def busy(slurm: Site) -> Iterator[tuple[str, str]]:
    """Drain node4, let a job run on two nodes for 30 minutes, and one for all three others wait; give the jobs."""
    drain = ["scontrol", "update", "nodename=node4", "state=drain", "reason=fan | broken [2]"]
    subprocess.run(drain, check=True)
    try:
        running = submit("--nodes=2", "--time=30")
        wait_for(running, JobState.RUNNING, is_planned=True)
        waiting = submit("--nodes=3", "--time=60")
        wait_for(waiting, JobState.PENDING, is_planned=True)
        yield running, waiting
    finally:
        subprocess.run(["scancel", "--name=view"], check=False)
        subprocess.run(["scontrol", "update", "nodename=node4", "state=resume"], check=False)
        deadline = time.monotonic() + 60
        while not all(node.is_free for node in SlurmCluster().look().nodes) and time.monotonic() < deadline:
            time.sleep(0.3)


def ask(*words: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit", "cluster", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **(environ or {})}
    )


def test_the_answer_is_what_slurm_does(busy: tuple[str, str], tmp_path: Path) -> None:
    running, waiting = busy
    view = SlurmCluster().look()
    (broken,) = (node for node in view.nodes if not node.is_usable)
    assert (broken.name, broken.state, broken.reason) == ("node4", "drained", "fan | broken [2]")
    assert broken.since is not None
    assert [job.job_id for job in view.jobs] == [running, waiting]
    assert view.jobs[1].start_time == view.jobs[0].end_time

    def expect(*, nodes: int, minutes: int) -> Any:
        section = ClusterSection(time_limit=minutes * MINUTE_S)
        return look_ahead(section, SlurmCluster(), root=tmp_path, nodes=nodes)

    # in the gap before the job that waits
    gap = expect(nodes=1, minutes=10)
    assert gap.starts[-1].start_time == gap.view.time
    # behind it, for no gap is long enough
    behind = expect(nodes=2, minutes=50)
    assert behind.starts[-1].start_time == view.jobs[1].end_time
    assert behind.free_for_s is None
    # more than can be used
    missing = expect(nodes=4, minutes=10)
    assert (missing.starts[0].nodes, missing.starts[0].start_time) == (1, missing.view.time)
    assert (missing.starts[-1].start_time, missing.starts[-1].refusal, missing.num_usable) == (None, "", 3)
    # and so it comes
    later = wait_for(submit("--nodes=2", "--time=50"), JobState.PENDING, is_planned=True)
    assert later.start_time == pytest.approx(behind.starts[-1].start_time, abs=MINUTE_S)  # bf_resolution
    wait_for(submit("--nodes=1", "--time=10"), JobState.RUNNING, is_planned=True)


def test_the_verb_shows_it_on_one_screen(busy: tuple[str, str], tmp_path: Path) -> None:
    done = ask("--nodes", "3", "--time", "10m", "--root", str(tmp_path), environ={"COLUMNS": "80", "SQUEUE_USERS": "x"})
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert re.search(r"node4 1 drained \S+ \S+ fan \| broken \[2\] \(\w+\)", told), told
    assert re.search(r"the queue ahead in main: 1 job for 3 nodes " + busy[1], told), told
    assert re.search(r"a run of 3 nodes in main \(10 min\): 1 node now or 3 nodes in", told), told
    assert max(map(len, done.stdout.splitlines())) <= 80
    done = ask("--nodes", "3", "--time", "10m", "--root", str(tmp_path), "--json")
    plain = json.loads(done.stdout)
    assert (plain["nodes"], plain["time_limit_s"], len(plain["view"]["jobs"])) == (3, 600, 2)


def test_bad_questions_and_a_silent_controller_are_told(slurm: Site, tmp_path: Path) -> None:
    done = ask("--partition", "nope", "--root", str(tmp_path))
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: there is no partition 'nope'")
    done = ask("--nodes", "1", "--time", "9-00:00:00", "--root", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Slurm refuses 1 node: " in done.stdout
    conf = slurm.conf.read_text(encoding="utf-8")
    deaf = tmp_path / "slurm.conf"
    deaf.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", conf), encoding="utf-8")
    done = ask("--root", str(tmp_path), environ={"SLURM_CONF": str(deaf)})
    assert (done.returncode, done.stdout) == (2, "")
    assert "Slurm does not answer" in done.stderr
    assert "scontrol ping" in done.stderr
