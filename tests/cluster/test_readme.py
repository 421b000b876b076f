"""The commands of the README, as a reader would type them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import run_site
from tests.dataset import make_texts, write_jsonl
from tests.devcluster.shapes import mini
from tests.runs import CHECKOUT
from toolkit.data.prepare.tokenizer import train_tokenizer

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("make ", "conda ", "python "))]


def run(command: str, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    words = command.replace("python ", f"{sys.executable} ", 1).split()
    environ = {**os.environ, "HOME": str(directory), "PYTHONPATH": str(CHECKOUT), **variables}
    return subprocess.run(words, cwd=directory, env=environ, capture_output=True, text=True, check=False, timeout=280)


def test_there_is_no_command_that_is_not_tried_here() -> None:
    assert commands() == [
        "make demo",
        "make test",  # this
        "conda env create -f environment.yml && conda activate toolkit",
        "python data_prep/tokenize_corpus.py corpus.jsonl --tokenizer tokenizer.json --out data/corpus",
        "python submit.py configs/runs/7b-8nodes.yaml --nodes 8",
    ]


def test_the_demo_learns_and_speaks(tmp_path: Path) -> None:
    assert "demo: setup\n\t@bash tools/demo.sh\n" in (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    few = ["run.tokens=24_576", "optim.warmup_tokens=8192", f"run.root={tmp_path}/runs", "cluster.scheduler=local"]
    done = run(f"bash {CHECKOUT}/tools/demo.sh {' '.join(few)}", tmp_path, DATA_DIR=f"{tmp_path}/data")
    assert done.returncode == 0, done.stderr
    first, last = (float(x) for x in re.findall(r"loss: first ([\d.]+), last ([\d.]+)", done.stdout)[0])
    assert last < first - 0.5
    assert "2 stages x 4 replicas on 8 nodes" in done.stdout
    assert "Return a new array of the given shape and" in done.stdout.split("a continued text:\n")[1]
    assert (tmp_path / "runs/demo/checkpoints/step-00000006/COMPLETE").is_file()


def test_the_environment_of_conda_is_that_of_the_project() -> None:
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "toolkit"
    assert {"pip": ["-e ."]} in environment["dependencies"]


def test_three_commands_are_enough_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, _, tokenize, submit = commands()
    for name in ("data_prep", "submit.py", "configs"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    write_jsonl(tmp_path / "corpus.jsonl", make_texts(12_000))
    train_tokenizer([str(tmp_path / "corpus.jsonl")], column="text", vocab_size=300, path=tmp_path / "tokenizer.json")
    done = run(tokenize, tmp_path)
    assert done.returncode == 0, done.stderr
    with run_site(mini(nodes=8, gpus=8, cpus=8)) as site:
        monkeypatch.setenv("SLURM_CONF", str(site.conf))
        # fewer blocks: a checkpoint of all 32 takes 75 GiB of this disk, and is asked for
        done = run(f"{submit} --dry-run model.num_hidden_layers=4", tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("4 blocks", "8 nodes x 8 ranks (H100)", "#SBATCH --gpus-per-node=h100:8"):
        assert text in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "word", ["cluster", "status", "logs", "stop", "resume", "cancel", "nodes", "health", "sync", "upload", "generate"]
)
def test_every_verb_explains_itself(word: str, tmp_path: Path) -> None:
    assert word in README
    done = run(f"python -m toolkit {word} -h", tmp_path)
    assert done.returncode == 0
    assert "usage: python -m toolkit" in done.stdout
    assert "RUN_DIR=runs/NAME sbatch sbatch/train.sbatch" in README  # tried in test_slurm_runs.py
