"""How a job ends on a real Slurm where preempted jobs are cancelled, in a directory of an odd name; what is told."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.devcluster.shapes import SHAPES, Shape
from tests.devcluster.sites import Site
from tests.runs import held, losses, rank_processes, submit, verb, wait_for_attempts, wait_for_step, wait_until
from toolkit.launch.ledger import read_attempts
from toolkit.launch.nodes import NodeLedger
from toolkit.rundir import RunDir

pytestmark = pytest.mark.cluster

NUM_STEPS = 150
ODD = 'my runs (100%j), it\'s "ünï"'


@pytest.fixture(scope="module")
def site(start_site: Callable[[Shape], Site]) -> Iterator[Site]:
    site = start_site(SHAPES["strict"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(site.conf))
        yield site


@pytest.fixture(scope="module")
def dataset(site: Site) -> Path:
    return make_dataset(site.make_home())[0]


@pytest.fixture
def start(site: Site, dataset: Path) -> Callable[..., RunDir]:
    def _start(*settings: str) -> RunDir:
        root = site.make_home() / ODD
        root.mkdir()
        root.chmod(0o777)
        words = ["--nodes", "2", "--gpus-per-node", "1", "--time", "10m", "cluster.cpus_per_task=1"]
        words += ["cluster.gpu_type=cpu", "checkpoint.save_every=20", "monitor.eval_every=1000"]
        done = submit(root, dataset, *words, f"run.tokens={NUM_STEPS * 1024}", *settings, site=site)
        assert done.returncode == 0, done.stderr
        return RunDir(root / "tiny")

    return _start


def finish(run_dir: RunDir) -> None:
    """Wait for the end; no step may be lost."""
    wait_until(
        lambda: read_attempts(run_dir)[-1].next == "nothing: all tokens are done",
        timeout_s=240,
        said=lambda: read_attempts(run_dir),
    )
    assert len(losses(run_dir)) == NUM_STEPS


def status(site: Site, run_dir: RunDir) -> str:
    return verb(run_dir.root.parent, "status", "tiny", site=site).stdout


def test_a_run_whose_job_was_cancelled_for_another_one_goes_on_in_a_job_behind_it(
    site: Site, start: Callable[..., RunDir]
) -> None:
    run_dir = start()
    with held(run_dir, 10):
        words = ["--partition=prio", "--nodes=4", "--exclusive", "--mem=0", "--time=1", "--output=/dev/null"]
        assert site.run(["sbatch", *words, "--wrap=sleep 2"]).returncode == 0
        wait_for_attempts(run_dir, 1, ended=True)
    finish(run_dir)
    first, last = read_attempts(run_dir)
    assert (first.outcome, first.next, first.culprits) == ("PREEMPTED", f"job {last.job_id}", ())
    assert "(preempted)" in status(site, run_dir)


def test_a_node_that_fails_is_named_and_a_run_that_may_not_be_requeued_goes_on(
    site: Site, start: Callable[..., RunDir]
) -> None:
    run_dir = start("cluster.requeue=false")
    with held(run_dir, 10):
        first, dead = read_attempts(run_dir)[0].nodes
        site.kill_node(dead)
        try:
            wait_for_attempts(run_dir, 1, ended=True)
        finally:
            site.start_node(dead)
    finish(run_dir)
    failed, last = read_attempts(run_dir)
    assert (failed.outcome, failed.reason, failed.culprits) == ("NODE_FAIL", f"node {dead} failed", (dead,))
    assert failed.next == f"job {last.job_id}"
    assert [event.node for event in NodeLedger(run_dir.root.parent).events()] == [dead]
    assert f"node {dead} failed" in status(site, run_dir)
    assert f"rank 0 on {first}" not in status(site, run_dir)


def test_the_node_of_a_killed_rank_is_named(site: Site, start: Callable[..., RunDir]) -> None:
    run_dir = start()
    wait_for_step(run_dir, 10)
    rank_processes(run_dir)[1].kill()
    finish(run_dir)
    first = read_attempts(run_dir)[0]
    assert first.culprits == (first.nodes[1],)
    assert first.reason == f"rank 1 on {first.nodes[1]}: Killed"


def test_what_slurm_refuses_to_a_step_is_shown(site: Site, start: Callable[..., RunDir]) -> None:
    run_dir = start("cluster.srun_extra=[--gres=gpu:9]", "cluster.max_fruitless=1")
    wait_for_attempts(run_dir, 1, ended=True)
    log = run_dir.batch_log_path(read_attempts(run_dir)[0].job_id)
    told, shown = status(site, run_dir), verb(run_dir.root.parent, "logs", "tiny", site=site).stdout
    assert f"Slurm says in {log}:\n  srun: error: " in told
    assert "Invalid generic resource (gres) specification" in told
    assert f"no rank has a log; the end of {log}:" in shown
    assert "Invalid generic resource (gres) specification" in shown
