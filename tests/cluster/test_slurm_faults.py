"""What goes wrong on a real Slurm, and runs that finish all the same: no step lost or changed."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.devcluster.sites import Site
from tests.runs import losses, rank_processes, submit, verb, wait, wait_for_attempts, wait_for_step, wait_until
from toolkit.cli import show
from toolkit.launch.ledger import Attempt, read_attempts
from toolkit.rundir import RunDir

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]

# nodes of the test cluster say that they have more cores than this machine
SPLIT = ("--nodes", "2", "parallel.stages=2", "cluster.cpus_per_task=1", "--time", "10m")
NUM_STEPS = 400
STEPS = (f"run.tokens={NUM_STEPS * 1024}", "monitor.eval_every=100")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> list[float]:
    """The losses of a run that nothing disturbs."""
    root = tmp_path_factory.mktemp("whole")
    assert submit(root, dataset, *SPLIT, *STEPS).returncode == 0
    run_dir = RunDir(root / "tiny")
    assert wait(run_dir)["job"]["state"] == "COMPLETED"
    return losses(run_dir)


@pytest.fixture
def start(tmp_path: Path, dataset: Path) -> Callable[..., RunDir]:
    def _start(*settings: str) -> RunDir:
        done = submit(tmp_path, dataset, *SPLIT, *STEPS, *settings)
        assert done.returncode == 0, done.stderr
        return RunDir(tmp_path / "tiny")

    return _start


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, timeout=60)


def job_id(run_dir: RunDir) -> str:
    return str(show.describe(run_dir)["job"]["job_id"])


def finish(run_dir: RunDir, whole: list[float], *, timeout_s: float = 240) -> list[Attempt]:
    """Wait for the end; the run must have done what one does that nothing disturbs."""
    run = wait(run_dir, timeout_s=timeout_s)
    attempts = read_attempts(run_dir)
    assert attempts[-1].outcome == "FINISHED", run
    assert attempts[-1].next == "nothing: all tokens are done"
    assert run["job"]["state"] == "COMPLETED", run
    assert losses(run_dir) == whole
    # one that the scheduler had given up may need a moment to find out
    wait_until(lambda: not rank_processes(run_dir), timeout_s=60, said=lambda: rank_processes(run_dir))
    return attempts


def test_the_time_limit_is_reached_three_times(start: Callable[..., RunDir], whole: list[float]) -> None:
    run_dir = start("checkpoint.save_every=1000")
    for number in range(3):
        wait_for_step(run_dir, 30 + 100 * number)
        if number == 2:
            scontrol("update", f"jobid={job_id(run_dir)}", "Requeue=0")
        scontrol("update", f"jobid={job_id(run_dir)}", "TimeLimit=1")  # seen while it runs
        # Slurm's own warning comes within half a minute, and the run may be done before
        subprocess.run(["scancel", "--signal=USR2", job_id(run_dir)], check=True, timeout=60)
        wait_for_attempts(run_dir, number + 1, ended=True)
        if number < 2:
            scontrol("update", f"jobid={job_id(run_dir)}", "TimeLimit=10")
    attempts = finish(run_dir, whole)
    assert [(one.outcome, one.reason) for one in attempts[:-1]] == [("REQUEUE", "the time limit is near")] * 3
    # where a requeue is forbidden, a new job goes on
    assert [one.next for one in attempts[:-1]] == ["requeued", "requeued", f"job {attempts[3].job_id}"]
    assert attempts[2].job_id != attempts[3].job_id
    assert [one.redone for one in attempts] == [0] * 4
    assert [one.first_step for one in attempts[1:]] == [one.last_step for one in attempts[:-1]]


def test_a_job_of_a_higher_partition_takes_the_nodes(start: Callable[..., RunDir], whole: list[float]) -> None:
    run_dir = start("--partition", "low", "checkpoint.save_every=20")
    wait_for_step(run_dir, 30)
    subprocess.run(
        ["sbatch", "--partition=main", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"], check=True
    )
    attempts = finish(run_dir, whole)
    assert len(attempts) == 2
    assert attempts[0].outcome == "PREEMPTED"
    assert attempts[1].job_id == attempts[0].job_id
    assert attempts[1].redone <= 20


def test_a_node_whose_slurmd_dies_is_left_and_what_lives_on_there_ends(
    start: Callable[..., RunDir], whole: list[float], slurm: Site
) -> None:
    run_dir = start("checkpoint.save_every=20")
    wait_for_step(run_dir, 30)
    node = read_attempts(run_dir)[0].nodes[1]
    ranks = rank_processes(run_dir)
    for rank in ranks:
        rank.suspend()  # until Slurm has noticed: else the run would be done before
    slurm.kill_slurmd(node)
    try:
        wait_for_attempts(run_dir, 2, ended=False)
        assert ranks[1].is_running()  # nobody could end it
        ranks[1].resume()
        attempts = finish(run_dir, whole)
    finally:
        slurm.start_node(node)
    assert node not in attempts[-1].nodes
    assert len(attempts) == 2


def test_a_rank_is_killed(start: Callable[..., RunDir], whole: list[float]) -> None:
    run_dir = start("checkpoint.save_every=20")
    wait_for_step(run_dir, 30)
    rank_processes(run_dir)[1].kill()
    first, last = finish(run_dir, whole)
    assert first.culprits == (first.nodes[1],)
    assert f"rank 1 on {first.nodes[1]}" in first.reason
    assert first.next == "requeued"
    assert last.first_step is not None
    assert last.first_step >= 20
    assert last.redone == (first.last_step or 0) - last.first_step
    said = verb(run_dir.root.parent, "status", "tiny").stdout
    assert f"({last.redone} done again)" in said or last.redone == 0
    assert "then requeued" in said


def test_a_rank_that_hangs_is_named_and_its_node_left_out(start: Callable[..., RunDir], whole: list[float]) -> None:
    run_dir = start("checkpoint.save_every=20", "faults.hang_min_s=4")
    wait_for_step(run_dir, 30)
    hanging = rank_processes(run_dir)[1]
    hanging.send_signal(signal.SIGSTOP)
    attempts = finish(run_dir, whole)
    first = attempts[0]
    bad = first.nodes[1]
    assert first.outcome == "CRASHED"
    assert f"rank 1 on {bad}" in first.reason
    assert (first.cause, first.culprits) == ("hang", (bad,))
    assert bad in first.next
    assert bad not in attempts[-1].nodes
    log = run_dir.rank_log_path(first.attempt, rank=0).read_text(encoding="utf-8")
    assert "train_step" in log  # where each thread stood
    listed = verb(run_dir.root.parent, "nodes").stdout
    assert bad in listed
    assert "hang" in listed


def test_the_controller_is_down_while_the_run_requeues(
    start: Callable[..., RunDir], whole: list[float], slurm: Site
) -> None:
    run_dir = start("checkpoint.save_every=1000")
    wait_for_step(run_dir, 30)
    slurm.kill_controller()
    try:
        first, second = rank_processes(run_dir)
        first.send_signal(signal.SIGUSR2)
        for _ in range(60):  # the run asks for its end in vain, for 18 s: it must not be done before
            if read_attempts(run_dir)[0].outcome == "REQUEUE":
                break
            second.suspend()
            time.sleep(1)
            second.resume()
            time.sleep(0.05)
        time.sleep(5)  # in which the requeue is tried in vain
    finally:
        slurm.start_controller()
    attempts = finish(run_dir, whole)
    assert [(one.outcome, one.redone) for one in attempts] == [("REQUEUE", 0), ("FINISHED", 0)]


def test_the_disk_is_full_when_it_saves(start: Callable[..., RunDir], whole: list[float], small_disk: Path) -> None:
    if not small_disk.is_mount():
        pytest.skip("a small file system cannot be mounted: run the tests as root")
    run_dir = start(f"checkpoint.dir={small_disk}/checkpoints", "checkpoint.save_every=40", "checkpoint.keep=1")
    wait_for_step(run_dir, 60)
    filler = small_disk / "filler"
    done = subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64K"], capture_output=True, text=True, check=False)
    assert "No space left" in done.stderr
    wait_for_step(run_dir, 130)
    filler.unlink()
    attempts = finish(run_dir, whole)
    assert len(attempts) == 1
    log = run_dir.rank_log_path(attempts[0].attempt, rank=0).read_text(encoding="utf-8")
    assert "could not be saved" in log
    assert "free" in log


def test_a_run_goes_on_with_half_the_nodes_and_then_with_other_stages(tmp_path: Path, dataset: Path) -> None:
    # at a rate at which rounding does not grow: another layout sums in another order
    gentle = ("optim.peak_lr=1e-4", "checkpoint.save_every=1000", *STEPS)
    wide = ("--nodes", "4", "parallel.stages=2", "cluster.cpus_per_task=1", "--time", "10m")
    assert submit(tmp_path, dataset, *wide, *gentle, name="whole").returncode == 0
    assert wait(RunDir(tmp_path / "whole"))["job"]["state"] == "COMPLETED"
    assert submit(tmp_path, dataset, *wide, *gentle).returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    for step, words in ((30, ("--nodes", "2")), (150, ("--nodes", "2", "parallel.stages=1"))):
        wait_for_step(run_dir, step)
        said = verb(tmp_path, "stop", "tiny")
        assert "saves and ends" in said.stdout, said
        wait(run_dir)
        assert read_attempts(run_dir)[-1].next == "nothing: it was stopped"
        again = verb(tmp_path, "resume", "tiny", *words)
        assert again.returncode == 0, again.stderr
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    assert losses(run_dir) == pytest.approx(losses(RunDir(tmp_path / "whole")), rel=1e-5)
    attempts = read_attempts(run_dir)
    assert [one.layout for one in attempts] == ["2 x 2, ZeRO 1", "2 x 1, ZeRO 1", "1 x 2, ZeRO 1"]
    assert [one.redone for one in attempts] == [0, 0, 0]
