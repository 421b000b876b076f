"""A run whose tokens are made first, by jobs, on emulated nodes and on a real Slurm."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.dataset import make_texts, write_jsonl
from tests.runs import CHECKOUT, losses, submit_without_data, verb, wait
from toolkit.cluster.base import JobState
from toolkit.cluster.local import LocalCluster
from toolkit.config.schema import ClusterSection
from toolkit.data.manifest import read_manifest
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.data.prepare.tokens import begin, prepare, run_spans
from toolkit.launch.prepare import plan_jobs, submit_jobs
from toolkit.rundir import RunDir


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.cluster)])
def scheduler(request: pytest.FixtureRequest) -> str:
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    return str(request.param)


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Path]:
    texts = make_texts(3000)
    source = tmp_path / "text"
    source.mkdir()
    for part in range(5):
        write_jsonl(source / f"{part}.jsonl", texts[part::5])
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer([str(source)], column="text", vocab_size=300, path=tokenizer)
    return source, tokenizer


def settings(tmp_path: Path, corpus: tuple[Path, Path], scheduler: str) -> list[str]:
    source, tokenizer = corpus
    words = [f"data.source={source}", f"data.tokenizer={tokenizer}", "data.validation=0.2", f"data.path={tmp_path}/out"]
    return [*words, f"cluster.scheduler={scheduler}", "cluster.cpus_per_task=1", "--nodes", "2", "parallel.stages=2"]


def test_text_becomes_tokens_before_the_run_and_then_stays(
    scheduler: str, tmp_path: Path, corpus: tuple[Path, Path]
) -> None:
    words = settings(tmp_path, corpus, scheduler)
    shown = submit_without_data(tmp_path / "runs", *words, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert f"data       {tmp_path}/out is made first, by 2 tasks and a last one" in shown.stdout
    assert shown.stdout.count("#!/bin/bash") == 3
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.glob("out*"))

    done = submit_without_data(tmp_path / "runs", *words)
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(tmp_path / "runs" / "tiny")
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    assert len(losses(run_dir)) == 20
    made = read_manifest(str(tmp_path / "out"))
    alone, _ = prepare(
        Preparation(inputs=(str(corpus[0]),), tokenizer=str(corpus[1]), validation=0.2), tmp_path / "alone"
    )
    assert made.fingerprint == alone.fingerprint

    again = submit_without_data(tmp_path / "runs", *words, "--dry-run")
    assert again.returncode == 0, again.stderr
    assert "is made first" not in again.stdout
    (corpus[0] / "5.jsonl").write_bytes((corpus[0] / "4.jsonl").read_bytes())
    refused = submit_without_data(tmp_path / "runs", *words)
    assert refused.returncode == 3
    assert "5.jsonl is new" in refused.stderr
    shutil.rmtree(corpus[0])
    assert submit_without_data(tmp_path / "runs", *words, "--dry-run").returncode == 0  # what stands is enough


def test_only_tasks_that_have_something_to_do_are_handed_in(tmp_path: Path, corpus: tuple[Path, Path]) -> None:
    asked = Preparation(inputs=(str(corpus[0]),), tokenizer=str(corpus[1]), validation=0.2, span_bytes=50_000)
    out = str(tmp_path / "out")
    cluster = LocalCluster(tmp_path / "runs" / ".cluster")
    (partition,) = cluster.limits()
    jobs = plan_jobs(asked, out=out, root=tmp_path / "runs", num_tasks=3, section=ClusterSection(), partition=partition)
    partial_dir = begin(asked, out)
    assert partial_dir is not None
    run_spans(partial_dir, task=1, num_tasks=3)
    last = submit_jobs(jobs, cluster)
    assert submit_jobs(jobs, cluster) == last  # they are at it
    spec = json.loads((cluster.state_dir / "jobs" / "1" / "spec.json").read_text(encoding="utf-8"))
    assert spec["array"] == [0, 2]
    deadline = time.monotonic() + 60
    while cluster.state(str(last)).state.is_live and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.state(str(last)).state is JobState.COMPLETED
    assert submit_jobs(jobs, cluster) is None
    assert read_manifest(out) == prepare(asked, tmp_path / "alone")[0]


def test_a_preparation_that_breaks_off_takes_the_run_along_and_says_why(
    tmp_path: Path, corpus: tuple[Path, Path]
) -> None:
    # the fifth file: the check before the queue reads the beginning of four
    (corpus[0] / "4.jsonl").write_text('{"text": "x"}\nbroken\n', encoding="utf-8")
    words = [*settings(tmp_path, corpus, "local"), "--nodes", "3", "parallel.stages=1", "batch.tokens_per_step=1536"]
    assert submit_without_data(tmp_path / "runs", *words).returncode == 0
    run_dir = RunDir(tmp_path / "runs" / "tiny")
    run = wait(run_dir)
    assert run["job"]["state"] == "CANCELLED"
    assert run["job"]["reason"] == "DependencyNeverSatisfied"
    (jobs_dir,) = (tmp_path / "runs" / ".prepare").iterdir()
    assert f"its data could not be made; see {jobs_dir}/logs" in verb(tmp_path / "runs", "status", "tiny").stdout
    said = "".join(path.read_text(encoding="utf-8") for path in (jobs_dir / "logs").glob("*/0.out"))
    assert f"{corpus[0]}/4.jsonl:2 (byte 14) is no JSON" in said
    assert not (tmp_path / "out").exists()

    (corpus[0] / "4.jsonl").unlink()
    refused = submit_without_data(tmp_path / "runs", *words)
    assert refused.returncode == 2
    assert "4.jsonl is gone" in refused.stderr


def test_a_tokenizer_that_is_too_large_for_the_model_is_refused_before_anything_is_made(
    tmp_path: Path, corpus: tuple[Path, Path]
) -> None:
    words = settings(tmp_path, corpus, "local")
    train_tokenizer([str(corpus[0])], column="text", vocab_size=350, path=tmp_path / "large.json")
    large = submit_without_data(tmp_path / "runs", *words, f"data.tokenizer={tmp_path}/large.json")
    assert "model.vocab_size=320, the dataset's tokenizer has 3" in large.stderr
    missing = submit_without_data(tmp_path / "runs", *words, f"data.source={tmp_path}/nothing")
    assert "no text found" in missing.stderr
    none = submit_without_data(tmp_path / "runs", *words, "data.tokenizer=null")
    assert "text becomes tokens by a tokenizer" in none.stderr
    assert not (tmp_path / "runs").exists()


def test_the_script_hands_its_work_in_by_itself(scheduler: str, tmp_path: Path, corpus: tuple[Path, Path]) -> None:
    (tmp_path / ".config" / "toolkit").mkdir(parents=True)
    (tmp_path / ".config" / "toolkit" / "cluster.yaml").write_text(f"cluster: {{scheduler: {scheduler}}}\n")
    environ = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    script = [sys.executable, str(CHECKOUT / "data_prep" / "tokenize_corpus.py"), "--out", "out", "--json"]
    words = ["text", "--tokenizer", "tokenizer.json", "--validation", "0.2", "--span-bytes", "50000"]

    def run(*more: str) -> dict[str, Any]:
        done = subprocess.run([*script, *more], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    assert run(*words, "--slurm", "3")["dataset"] == str(tmp_path / "out")
    deadline = time.monotonic() + 100
    while not (tmp_path / "out").exists() and time.monotonic() < deadline:
        time.sleep(0.3)
    asked = Preparation(inputs=(str(corpus[0]),), tokenizer=str(corpus[1]), validation=0.2, span_bytes=50_000)
    alone, _ = prepare(asked, tmp_path / "alone")
    assert read_manifest(str(tmp_path / "out")).fingerprint == alone.fingerprint
    assert run("--status")["train_tokens"] == alone.num_tokens("train")
    assert run(*words, "--slurm", "3")["last_job"] == "none: it stands"


@pytest.mark.cluster
@pytest.mark.usefixtures("slurm")
def test_the_sbatch_template_makes_the_same_dataset(tmp_path: Path, corpus: tuple[Path, Path]) -> None:
    environ = {**os.environ, "TOOLKIT_PYTHON": sys.executable}
    out = tmp_path / "out"
    template = ["sbatch/prep_array.sbatch", "--out", str(out)]
    words = [str(corpus[0]), "--tokenizer", str(corpus[1]), "--validation", "0.2", "--span-bytes", "50000"]
    steps = (["--array=0-2", *template, *words], template)
    for step in steps:
        command = ["sbatch", "--wait", f"--output={tmp_path}/%j.log", *step]
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, check=False, timeout=200
        )
        said = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.log"))
        assert done.returncode == 0, done.stderr + said
    asked = Preparation(inputs=(str(corpus[0]),), tokenizer=str(corpus[1]), validation=0.2, span_bytes=50_000)
    assert read_manifest(str(out)) == prepare(asked, tmp_path / "alone")[0]
