"""What a user does with runs, on a real Slurm of every shape, as an ordinary user of it where it has one."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dataset import make_dataset, make_texts, write_jsonl
from tests.devcluster.shapes import SHAPES, Shape
from tests.devcluster.sites import Site
from tests.runs import (
    TINY,
    held,
    losses,
    rank_processes,
    submit,
    submit_without_data,
    verb,
    verb_without_root,
    wait,
    wait_for_attempts,
    wait_for_step,
    wait_until,
)
from toolkit.cli import show
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.launch.ledger import Attempt, find_job_record, read_attempts, read_refusals
from toolkit.rundir import RunDir

pytestmark = pytest.mark.cluster

EVERY = tuple(SHAPES)
NUM_STEPS = 100
PARTITION = {"acct": "h100"}  # it has no default one


@pytest.fixture(scope="module", params=SHAPES)
def site(request: pytest.FixtureRequest, start_site: Callable[[Shape], Site]) -> Iterator[Site]:
    site = start_site(SHAPES[request.param])
    if site.shape.name == "lua":
        site.set_mode("banner")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(site.conf))
        yield site


@pytest.fixture(scope="module")
def dataset(site: Site) -> Path:
    return make_dataset(site.make_home())[0]


def flags(site: Site, *, nodes: int) -> list[str]:
    words = ["--nodes", str(nodes), "--gpus-per-node", "1", "--time", "10m", "cluster.cpus_per_task=1"]
    words += [f"run.tokens={NUM_STEPS * 1024}", "checkpoint.save_every=20", "monitor.eval_every=100"]
    partition = PARTITION.get(site.shape.name)
    return [*words, "--partition", partition] if partition else words


def make_home(site: Site) -> Path:
    """Make a home with the site profile that the site needs: strict does not say what its GPUs are."""
    home = site.make_home()
    if site.shape.name == "strict":
        profile = home / ".config" / "toolkit" / "cluster.yaml"
        profile.parent.mkdir(parents=True)
        profile.write_text("cluster: {gpu_type: h100}\n", encoding="utf-8")
        if site.shape.user:
            for path in (home / ".config", profile.parent, profile):
                shutil.chown(path, site.shape.user)
    return home


def start(site: Site, dataset: Path, *words: str, nodes: int) -> RunDir:
    root = make_home(site)
    done = submit(root, dataset, *flags(site, nodes=nodes), *words, site=site)
    assert done.returncode == 0, done.stderr
    return RunDir(root / "tiny")


def job_id(run_dir: RunDir) -> str:
    return str(show.describe(run_dir)["job"]["job_id"])


def finish(run_dir: RunDir) -> None:
    """Wait for the end; no step may be lost."""
    run = wait(run_dir, timeout_s=240)
    assert run["state"] == "FINISHED", run
    assert read_attempts(run_dir)[-1].next == "nothing: all tokens are done"
    assert len(losses(run_dir)) == NUM_STEPS


def sbatch(site: Site, run_dir: RunDir, *, nodes: int) -> str:
    """Go on with a run by hand; give the job."""
    partition = PARTITION.get(site.shape.name)
    words = [f"--nodes={nodes}", "--gpus-per-node=1", "--time=10", "--output=/dev/null"]
    words += [f"--partition={partition}"] if partition else []
    variables = {"RUN_DIR": str(run_dir.root), "HOME": str(run_dir.root.parent)}
    done = site.run(["sbatch", "--parsable", *words, "sbatch/train.sbatch"], **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def is_over(attempt: Attempt, job: str) -> bool:
    return attempt.job_id == job and attempt.next.startswith("nothing")


@pytest.fixture(scope="module")
def finished(site: Site) -> RunDir:
    """A run whose tokens were made by jobs before."""
    root = make_home(site)
    source = write_jsonl(root / "text.jsonl", make_texts())
    train_tokenizer([str(source)], column="text", vocab_size=300, path=root / "tokenizer.json")
    data = [f"data.source={source}", f"data.tokenizer={root}/tokenizer.json", f"data.path={root}/out"]
    words = [*flags(site, nodes=2), *data, "data.validation=0.2"]
    done = submit_without_data(root, *words, site=site)
    assert done.returncode == 0, done.stderr
    finish(RunDir(root / "tiny"))
    return RunDir(root / "tiny")


@pytest.fixture(scope="module")
def by_hand(site: Site, finished: RunDir) -> str:
    """The job that went on with it by hand."""
    job = sbatch(site, finished, nodes=2)
    # the ledger, not Slurm: some sites forget a job seconds after its end
    wait_until(lambda: is_over(read_attempts(finished)[-1], job), said=lambda: read_attempts(finished))
    return job


def test_jobs_make_the_tokens_and_the_run_goes_to_its_end(finished: RunDir) -> None:
    assert (finished.root.parent / "out" / "manifest.json").is_file()
    assert len(read_attempts(finished)) == 1


def test_the_sbatch_template_goes_on_with_a_run(finished: RunDir, by_hand: str) -> None:
    log = finished.rank_log_path(f"{by_hand}.0", rank=0).read_text(encoding="utf-8")
    assert "resumed from" in log
    assert f"FINISHED at step {NUM_STEPS}" in log


def test_the_job_of_the_sbatch_template_is_the_runs_job(site: Site, finished: RunDir, by_hand: str) -> None:
    told = verb(finished.root.parent, "status", "tiny", "--json", site=site)
    assert json.loads(told.stdout)["job"]["job_id"] == by_hand


@pytest.mark.parametrize("site", ["strict"], indirect=True)
@pytest.mark.usefixtures("by_hand")
def test_the_sbatch_template_on_fewer_nodes_says_how_to_go_on(site: Site, finished: RunDir) -> None:
    before = read_attempts(finished)
    job = sbatch(site, finished, nodes=1)
    wait_until(lambda: job in str(read_refusals(finished)), said=lambda: read_attempts(finished))
    told = verb(finished.root.parent, "status", "tiny", site=site).stdout
    assert f"attempt {job}.0 was turned away: job {job} has 1 tasks on 1 nodes" in told
    assert "python -m toolkit resume tiny --nodes 1" in told
    assert read_attempts(finished) == before


def test_a_run_is_stopped_goes_on_with_other_nodes_and_survives_a_killed_rank(site: Site, dataset: Path) -> None:
    run_dir = start(site, dataset, nodes=2)
    root = run_dir.root.parent
    with held(run_dir, 5):
        said = verb(root, "stop", "tiny", site=site)
    assert "saves and ends" in said.stdout, said
    wait(run_dir)
    (stopped,) = read_attempts(run_dir)
    assert (stopped.outcome, stopped.next) == ("STOPPED", "nothing: it was stopped")
    again = verb(root, "resume", "tiny", "--nodes", "1", site=site)
    assert again.returncode == 0, again.stderr
    wait_for_step(run_dir, (stopped.last_step or 0) + 5)
    rank_processes(run_dir)[0].kill()
    finish(run_dir)
    _, killed, last = read_attempts(run_dir)
    assert (killed.first_step, len(killed.nodes)) == (stopped.last_step, 1)
    assert f"rank 0 on {killed.nodes[0]}" in killed.reason
    assert last.outcome == "FINISHED"


def test_a_run_goes_on_after_its_time_limit_and_on_another_node_after_a_dead_one(site: Site, dataset: Path) -> None:
    run_dir = start(site, dataset, nodes=1)
    with held(run_dir, 5):
        job = job_id(run_dir)
        site.ask("scontrol", "update", f"jobid={job}", "TimeLimit=1")
        site.ask("scancel", "--signal=USR2", job)  # Slurm's own warning comes within half a minute
    wait_for_attempts(run_dir, 1, ended=True)
    site.ask("scontrol", "update", f"jobid={job_id(run_dir)}", "TimeLimit=10")
    (limited,) = read_attempts(run_dir)[:1]
    assert (limited.outcome, limited.reason) == ("REQUEUE", "the time limit is near")
    wait_for_step(run_dir, (limited.last_step or 0) + 5)
    dead = read_attempts(run_dir)[1].nodes[0]
    site.kill_node(dead)
    try:
        wait_for_attempts(run_dir, 3, ended=True, timeout_s=240)
    finally:
        site.start_node(dead)
    finish(run_dir)
    attempts = read_attempts(run_dir)
    assert attempts[1].first_step == limited.last_step
    assert dead not in attempts[2].nodes


def test_a_run_starts_after_its_rehearsal_on_the_cluster_and_can_be_cancelled(site: Site, dataset: Path) -> None:
    run_dir = start(site, dataset, "--rehearse", "--on-cluster", nodes=2)
    root = run_dir.root.parent
    with held(run_dir, 1):
        said = verb(root, "cancel", "tiny", site=site)
    assert said.returncode == 0, said.stderr
    run = wait(run_dir)
    assert run["job"]["state"] == "CANCELLED", run
    rehearsal = RunDir(root / ".rehearsals" / "tiny" / "tiny")
    assert [(one.outcome, one.next) for one in read_attempts(rehearsal)] == [
        ("REQUEUE", "requeued"),
        ("FINISHED", "nothing: all tokens are done"),
    ]
    assert find_job_record(run_dir) is not None


def test_the_cluster_and_a_plan_for_it_are_shown(site: Site) -> None:
    root = make_home(site)
    partition = ["--partition", PARTITION[site.shape.name]] if site.shape.name in PARTITION else []
    shown = verb(root, "cluster", "--nodes", "2", "--time", "10m", *partition, "--json", site=site)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert {node["name"] for node in found["view"]["nodes"]} == set(site.shape.node_names())
    plan = verb_without_root(root, "plan", str(TINY), "--nodes", "2", "--gpus-per-node", "1", *partition, site=site)
    assert plan.returncode == 0, plan.stderr
    assert "on 2 nodes" in plan.stdout
