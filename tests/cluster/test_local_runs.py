"""Runs on emulated nodes, through the command line: stop, go on, fail."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.dataset import make_dataset, make_texts, write_jsonl
from tests.runs import (
    CHECKOUT,
    losses,
    rank_processes,
    submit,
    submit_command,
    submit_without_data,
    verb,
    verb_without_root,
    wait,
    wait_for_attempts,
    wait_for_step,
)
from toolkit.cluster.local import LocalCluster
from toolkit.data.manifest import read_manifest
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokens import prepare
from toolkit.launch.measured import keep_measurement
from toolkit.monitor.history import read_steps
from toolkit.rundir import RunDir

LOCAL = "cluster.scheduler=local"
SPLIT = ("--nodes", "2", "parallel.stages=2", LOCAL)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))[0]


def test_a_run_that_is_requeued_in_the_middle_equals_one_that_never_stopped(tmp_path: Path, dataset: Path) -> None:
    long = ("run.tokens=61_440", "checkpoint.save_every=1000", *SPLIT)
    assert submit(tmp_path, dataset, *long, name="whole").returncode == 0
    assert wait(RunDir(tmp_path / "whole"))["job"]["state"] == "COMPLETED"
    assert submit(tmp_path, dataset, *long, name="cut").returncode == 0
    run_dir = RunDir(tmp_path / "cut")
    wait_for_step(run_dir, 5)
    rank_processes(run_dir)[1].send_signal(signal.SIGUSR2)  # one rank is told, all agree
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    assert run["job"]["restarts"] == 1
    assert [attempt["outcome"] for attempt in run["attempts"]] == ["REQUEUE", "FINISHED"]
    assert losses(run_dir) == losses(RunDir(tmp_path / "whole"))
    listed = verb(tmp_path, "status")
    assert "whole" in listed.stdout
    assert "60/60" in listed.stdout
    said = verb(tmp_path, "generate", "cut", "--prompt", "the cat", "--tokens", "5")
    assert said.stdout.startswith("the cat"), said.stderr


def test_what_a_run_shows_is_held_against_its_plan_and_corrects_the_next(tmp_path: Path, dataset: Path) -> None:
    asked = ("run.tokens=30_720", "--nodes", "1", "parallel.stages=1", LOCAL)
    first = submit(tmp_path, dataset, *asked)
    assert first.returncode == 0, first.stderr
    assert "uncalibrated" in first.stdout
    run_dir = RunDir(tmp_path / "tiny")
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    expected, measured = run["expected"], run["measured"]
    assert f"{expected['step_s']:.3g} s a step" in first.stdout
    times = [line["speed/step_s"] for line in read_steps(run_dir.metrics_path)]
    assert min(times) < measured["step_s"] < max(times)
    assert run["comparison"] in verb(tmp_path, "status", "tiny").stdout
    assert f"measured {measured['mfu']:.1%}" in run["comparison"]
    said = (run_dir.attempt_dir("1.0") / "epilogue.out").read_text(encoding="utf-8")
    assert "corrected by this run" in said  # or not, with the reason: others may disturb this machine
    _quieten(run_dir, step_s=measured["step_s"])
    assert "are corrected by this run" in keep_measurement(run_dir)
    shown = verb_without_root(tmp_path, "plan", "--calibration").stdout
    assert "calibrated by 1 run," in shown
    assert str(tmp_path / ".config" / "toolkit" / "calibration.json") in shown
    second = submit(tmp_path, dataset, *asked, "--dry-run", name="next")
    assert "calibrated by 1 run)" in second.stdout
    planned_s = float(re.findall(r"speed +([\d.e-]+) s a step", second.stdout)[0])
    assert planned_s == pytest.approx(measured["step_s"], rel=0.01)


def _quieten(run_dir: RunDir, *, step_s: float) -> None:
    """Give all steps of a run the same time, as a machine without others would."""
    lines = [{**line, "speed/step_s": step_s, "speed/data_fraction": 0.0} for line in read_steps(run_dir.metrics_path)]
    run_dir.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_a_stop_before_anyone_listens_is_heard_all_the_same(tmp_path: Path, dataset: Path) -> None:
    assert submit(tmp_path, dataset, *SPLIT, "run.tokens=61_440", 'cluster.setup=["sleep 2"]').returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    run_dir.halt_path.write_text("stop\n", encoding="utf-8")  # and its signal is lost
    run = wait(run_dir)
    assert [(one["outcome"], one["last_step"], one["next"]) for one in run["attempts"]] == [
        ("STOPPED", 0, "nothing: it was stopped")
    ]


def test_a_time_limit_that_is_changed_while_the_run_goes_is_kept_and_the_budget_of_restarts_ends(
    tmp_path: Path, dataset: Path
) -> None:
    asked = ("--time", "1h", "cluster.signal_delay_s=60", "cluster.max_requeues=2", "run.tokens=2e8")
    assert submit(tmp_path, dataset, *asked, *SPLIT, "checkpoint.save_every=1000").returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    cluster = LocalCluster(tmp_path / ".cluster")
    for number in range(3):
        wait_for_attempts(run_dir, number + 1, ended=False)
        first_step = len(losses(run_dir)) if number else 0
        wait_for_step(run_dir, first_step + 5)
        start_time = cluster.state("1").start_time
        assert start_time is not None
        cluster.set_time_limit("1", limit_s=time.time() - start_time + 50)  # less than is kept for the first save
        cluster.signal("1", "USR2")  # the job's own warning may have come at its start, under the former limit
        wait_for_attempts(run_dir, number + 1, ended=True)
        if number < 2:
            cluster.set_time_limit("1", limit_s=3600)
    run = wait(run_dir)
    assert [attempt["outcome"] for attempt in run["attempts"]] == ["REQUEUE"] * 3
    assert [attempt["reason"] for attempt in run["attempts"]] == ["the time limit is near"] * 3
    assert [attempt["next"] for attempt in run["attempts"]] == [
        "requeued",
        "requeued",
        "nothing: cluster.max_requeues=2 is used up",
    ]
    assert run["job"]["restarts"] == 2
    assert run["job"]["state"] == "FAILED"
    steps = [(attempt["first_step"], attempt["last_step"]) for attempt in run["attempts"]]
    assert [first for first, _ in steps] == [0, *(last for _, last in steps[:-1])]
    assert len(losses(run_dir)) == steps[-1][1]


def test_following_shows_progress_and_ctrl_c_leaves_the_job_running(tmp_path: Path, dataset: Path) -> None:
    command = submit_command(tmp_path, f"data.path={dataset}", "--follow", "run.tokens=2e8", *SPLIT)
    run_dir = RunDir(tmp_path / "tiny")
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, start_new_session=True) as follower:
        wait_for_step(run_dir, 2)
        follower.send_signal(signal.SIGINT)
        said, _ = follower.communicate(timeout=30)
    assert follower.returncode == 0
    assert "RUNNING starting" in said
    assert "the job goes on; stop it: python -m toolkit stop tiny" in said
    assert len(rank_processes(run_dir)) == 2
    command = [sys.executable, "-m", "toolkit", "logs", "tiny", "--rank", "1", "--follow", "--root", str(tmp_path)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as reader:
        assert verb(tmp_path, "cancel", "tiny").returncode == 0
        assert reader.wait(timeout=60) == 0  # it ends with the job
    assert "step 1/" in verb(tmp_path, "logs", "tiny").stdout
    none = verb(tmp_path, "logs", "tiny", "--rank", "7")
    assert none.returncode == 2
    assert "no log of rank 7" in none.stderr
    unknown = verb(tmp_path, "status", "tinny")
    assert unknown.returncode == 2
    assert "runs there: tiny" in unknown.stderr


def test_a_cancelled_run_saves_and_goes_on_with_other_nodes(tmp_path: Path, dataset: Path) -> None:
    long = ("run.tokens=204_800", "checkpoint.save_every=1000")
    assert submit(tmp_path, dataset, *long, *SPLIT).returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    wait_for_step(run_dir, 3)
    refused = submit(tmp_path, dataset, *long, *SPLIT)
    assert refused.returncode == 2
    assert "is live: job 1 is RUNNING" in refused.stderr
    assert verb(tmp_path, "cancel", "tiny").returncode == 0
    assert wait(run_dir, timeout_s=30)["job"]["state"] == "CANCELLED"
    assert rank_processes(run_dir) == []
    done = len(losses(run_dir))
    fewer = (f"run.tokens={1024 * (done + 5)}", "--nodes", "1", "parallel.stages=1", LOCAL)
    assert submit(tmp_path, dataset, *fewer).returncode == 0
    run = wait(run_dir)
    assert [attempt["outcome"] for attempt in run["attempts"]] == ["STOPPED", "FINISHED"]
    assert run["attempts"][1]["first_step"] == done
    assert len(losses(run_dir)) == done + 5


def test_a_run_goes_on_over_damaged_records_but_begins_anew_only_when_told(tmp_path: Path, dataset: Path) -> None:
    one = ("--nodes", "1", LOCAL, "optim.warmup_tokens=0")
    assert submit(tmp_path, dataset, "run.tokens=3072", *one).returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    wait(run_dir)
    first, *others = run_dir.metrics_path.read_bytes().splitlines(keepends=True)
    run_dir.metrics_path.write_bytes(b"".join([first, b"\xff{broken\n", *others, b"\0" * 5000]))
    run_dir.attempts_path.write_bytes(run_dir.attempts_path.read_bytes() + b'{"attempt": "9.9", "jo')
    run_dir.job_path.write_bytes(b'{"scheduler": "lo')
    assert submit(tmp_path, dataset, "run.tokens=6144", *one).returncode == 0
    assert [attempt["outcome"] for attempt in wait(run_dir)["attempts"]] == ["FINISHED", "FINISHED"]
    done = losses(run_dir)
    assert len(done) == 6

    shutil.rmtree(run_dir.checkpoints_dir)
    refused = submit(tmp_path, dataset, "run.tokens=8192", *one)
    assert refused.returncode == 3
    assert "--from-scratch" in refused.stderr
    assert losses(run_dir) == done
    assert submit(tmp_path, dataset, "run.tokens=2048", "--from-scratch", *one).returncode == 0
    assert wait(run_dir)["job"]["state"] == "COMPLETED"
    assert len(losses(run_dir)) == 2
    assert [step["train/loss"] for step in read_steps(run_dir.former_dir(1) / "metrics.jsonl")] == done


def test_a_rank_that_is_killed_again_and_again_ends_the_run_and_status_names_it(tmp_path: Path, dataset: Path) -> None:
    long = ("run.tokens=2e8", "checkpoint.save_every=100_000", "cluster.max_fruitless=2")
    assert submit(tmp_path, dataset, *long, *SPLIT).returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    wait_for_step(run_dir, 2)
    rank_processes(run_dir)[1].kill()
    wait_for_attempts(run_dir, 2, ended=False)
    rank_processes(run_dir)[1].kill()  # at the start: it never gets further
    run = wait(run_dir, timeout_s=60)
    assert run["job"]["state"] == "FAILED"
    assert run["job"]["exit_note"] == "rank 1 on node2: killed by SIGKILL"
    first, second = run["attempts"]
    assert (first["outcome"], first["culprits"], first["next"]) == ("KILLED", ("node2",), "requeued")
    assert second["next"] == "nothing: 2 attempts in a row got no further (cluster.max_fruitless=2)"
    said = verb(tmp_path, "status", "tiny").stdout
    assert "ended by rank 1 on node2: killed by SIGKILL" in said
    assert "last lines of" in said
    assert rank_processes(run_dir) == []


def test_a_killed_controller_takes_the_ranks_with_it(tmp_path: Path, dataset: Path) -> None:
    assert submit(tmp_path, dataset, "run.tokens=2e8", *SPLIT).returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    wait_for_step(run_dir, 1)
    ranks = rank_processes(run_dir)
    parent = ranks[0].parent()
    assert parent is not None
    parent.kill()
    psutil.wait_procs(ranks, timeout=10)
    assert rank_processes(run_dir) == []
    assert LocalCluster(tmp_path / ".cluster").state("1").reason == "the controller of the job was killed"


def test_bad_input_is_refused_at_once_and_leaves_nothing(tmp_path: Path, dataset: Path) -> None:
    root = tmp_path / "runs"
    done = submit(root, dataset, "--nodes", "65", "parallel.zero_stage=2", "parallel.stages=5", LOCAL)
    assert done.returncode == 2
    for text in ("parallel.zero_stage=2 cannot run", "every stage needs a block", "--nodes 65"):
        assert text in done.stderr, done.stderr
    done = submit(root, dataset, "modle.hidden_size=3", "optim.eps=abc", LOCAL)
    assert "did you mean model.hidden_size" in done.stderr
    assert "'abc' is no number" in done.stderr
    done = submit(root, tmp_path / "nothing", LOCAL)
    assert done.returncode == 3
    assert "does not exist" in done.stderr
    large = ("model.hidden_size=65536", "model.intermediate_size=262144", "model.num_hidden_layers=100")
    done = submit(root, dataset, *large, LOCAL)
    assert "iB free" in done.stderr
    assert "one checkpoint takes" in done.stderr
    done = submit(Path("/proc/runs"), dataset, LOCAL)
    assert "cannot write to /proc" in done.stderr
    assert "set run.root" in done.stderr
    assert not root.exists()


def test_a_damaged_shard_is_refused_by_its_check(tmp_path: Path) -> None:
    dataset, manifest = make_dataset(tmp_path)
    shard = dataset / manifest.splits["train"][0].path
    os.truncate(shard, shard.stat().st_size - 1)
    done = submit(tmp_path / "runs", dataset, "model.num_hidden_layers=2", "--dry-run", LOCAL)
    assert done.returncode == 3
    assert f"shards: {shard} has" in done.stderr


def test_a_crashed_node_is_survived_by_a_restart_from_the_last_save(tmp_path: Path, dataset: Path) -> None:
    assert submit(tmp_path, dataset, "run.tokens=40_960", *SPLIT).returncode == 0
    run_dir = RunDir(tmp_path / "tiny")
    wait_for_step(run_dir, 12)
    LocalCluster(tmp_path / ".cluster").kill_node("1", 2)
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    crashed, finished = run["attempts"]
    assert crashed["outcome"] in {"KILLED", "CRASHED"}  # the other node may just have time to say what it saw
    assert finished["outcome"] == "FINISHED"
    assert run["attempts"][1]["first_step"] in {10, 20, 30}
    assert len(losses(run_dir)) == 40


def test_a_mixture_is_trained_validated_and_held_to_its_datasets(tmp_path: Path, dataset: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_texts(200)[::-1])
    other = tmp_path / "other"
    prepare(Preparation(inputs=(str(corpus),), tokenizer=str(dataset), validation=0.2), other)
    both = f"data.mixture={{{dataset}: 3, {other}: 1}}"
    long = ("data.seq_len=65_536", "batch.tokens_per_step=65_536")
    done = submit_without_data(tmp_path / "runs", both, "data.path=null", *long, LOCAL)
    for path in (dataset, other):
        assert f"the train split of {path} has" in done.stderr
    mixed = ("data.path=null", "data.replica_split=hash", "data.document_mask=true", "run.tokens=20_480", *SPLIT)
    done = submit_without_data(tmp_path / "runs", both, *mixed)
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(tmp_path / "runs" / "tiny")
    assert wait(run_dir)["job"]["state"] == "COMPLETED"
    values = [line for line in read_steps(run_dir.metrics_path) if "validation/loss" in line][-1]
    shares = {"validation/loss/dataset": 0.75, "validation/loss/other": 0.25}
    assert values["validation/loss"] == pytest.approx(sum(values[name] * share for name, share in shares.items()))
    done = submit_without_data(tmp_path / "runs", f"data.mixture={{{dataset}: 1, {other}: 1}}", *mixed)
    assert done.returncode == 2
    fingerprints = [read_manifest(str(path)).fingerprint for path in (dataset, other)]
    for share in ((0.75, 0.25), (0.5, 0.5)):
        assert f"{share[0]} x {fingerprints[0]} + {share[1]} x {fingerprints[1]} seq_len=64" in done.stderr
