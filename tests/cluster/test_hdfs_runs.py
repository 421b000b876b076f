"""A run whose text, tokens and checkpoints all lie on a real HDFS."""

import shutil
from pathlib import Path

import pytest

from tests.dataset import make_texts, write_jsonl
from tests.runs import losses, submit_without_data, verb, wait
from toolkit import storage
from toolkit.checkpoint.upload import list_remote
from toolkit.data.manifest import read_manifest
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.rundir import RunDir

pytestmark = pytest.mark.cluster


def test_everything_of_a_run_may_lie_on_hdfs(remote_dir: str, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_texts(3000))
    train_tokenizer([str(corpus)], column="text", vocab_size=300, path=tmp_path / "tokenizer.json")
    for name in ("corpus.jsonl", "tokenizer.json"):
        storage.copy_file(str(tmp_path / name), f"{remote_dir}/{name}")
        (tmp_path / name).unlink()
    words = [
        f"data.source={remote_dir}/corpus.jsonl",
        f"data.tokenizer={remote_dir}/tokenizer.json",
        f"data.path={remote_dir}/tokens",
        "data.validation=0.2",
        f"data.cache_dir={tmp_path}/cache",
        f"checkpoint.dir={remote_dir}/checkpoints",
        "checkpoint.keep=1",
        *("cluster.scheduler=local", "--nodes", "2", "parallel.stages=2"),
    ]
    root = tmp_path / "runs"
    done = submit_without_data(root, *words)
    assert done.returncode == 0, done.stderr
    run_dir = RunDir(root / "tiny")
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    assert len(read_manifest(f"{remote_dir}/tokens").splits["train"]) >= 1
    assert list(list_remote(f"{remote_dir}/checkpoints")) == [20]
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 2  # one download for both ranks

    copied = verb(root, "upload", "tiny", f"{remote_dir}/copy")
    assert copied.returncode == 0, copied.stderr
    assert storage.exists(f"{remote_dir}/copy/metrics.jsonl")
    assert list(list_remote(f"{remote_dir}/copy/checkpoints")) == [20]

    shutil.rmtree(run_dir.checkpoints_dir)  # a new file system: only the copy is left
    shutil.rmtree(tmp_path / "cache")
    done = submit_without_data(root, *words, "run.tokens=25_600")
    assert done.returncode == 0, done.stderr
    run = wait(run_dir)
    assert run["job"]["state"] == "COMPLETED", run
    assert run["attempts"][-1]["first_step"] == 20
    assert len(losses(run_dir)) == 25
    said = verb(root, "generate", "tiny", "--prompt", "the cat", "--tokens", "3")
    assert said.stdout.startswith("the cat"), said.stderr


def test_a_name_node_that_is_away_is_told_before_anything_is_submitted(tmp_path: Path) -> None:
    done = submit_without_data(tmp_path / "runs", "data.path=hdfs://127.0.0.1:9/tokens", "cluster.scheduler=local")
    assert done.returncode == 3
    assert "hdfs://127.0.0.1:9 must answer" in done.stderr
    assert not (tmp_path / "runs").exists()
