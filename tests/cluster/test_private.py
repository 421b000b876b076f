"""Nothing of a run is open to others, whatever the umask, and no secret that a job is given is written anywhere."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.dataset import make_dataset, make_texts, write_jsonl
from tests.runs import submit, submit_without_data, verb, wait, wait_for_step
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.rundir import RunDir

SECRET = "Zq7canaryPw9"
RUN = (
    "--nodes",
    "2",
    "cluster.scheduler=local",
    "monitor.wandb=offline",
    "monitor.tensorboard=true",
    "run.tokens=20_480",
)


@pytest.fixture(params=[0o000, 0o002, 0o022], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def open_to_others(root: Path) -> list[str]:
    paths = [root, *root.rglob("*")]
    return [f"{path} {stat.filemode(path.lstat().st_mode)}" for path in paths
            if not path.is_symlink() and path.lstat().st_mode & 0o077]  # fmt: skip


def holding(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def command_lines() -> str:
    return "\n".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))


def test_a_run_is_its_owners_alone(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = make_dataset(tmp_path)
    key = tmp_path / "key"
    key.write_text(SECRET)
    root = tmp_path / "runs"
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    remote = f"https://me:{SECRET}@host/x.git"
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=tmp_path, check=True)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MY_PASSWORD", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", f"{SECRET}{'a' * 28}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@localhost:9")
    said = submit(
        root, dataset, *RUN, "cluster.pass_env=[MY_PASSWORD]", f"cluster.setup=['export PGPASS=$(cat {key})']"
    )
    assert said.returncode == 0, said.stderr
    run_dir = RunDir(root / "tiny")
    wait_for_step(run_dir, 3)
    assert SECRET not in command_lines()
    assert wait(run_dir)["attempts"][-1]["outcome"] == "FINISHED"
    told = verb(root, "status", "tiny", "--json")
    assert list(run_dir.wandb_dir.glob("offline-run-*"))
    assert list(run_dir.tensorboard_dir.iterdir())
    assert SECRET not in said.stdout + said.stderr + told.stdout + told.stderr
    assert holding(root) == []
    assert open_to_others(root) == []


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.cluster)])
def scheduler(request: pytest.FixtureRequest) -> str:
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    return str(request.param)


@pytest.fixture
def of_most_shells() -> Iterator[None]:
    former = os.umask(0o022)
    yield
    os.umask(former)


@pytest.mark.usefixtures("of_most_shells")
def test_a_dataset_keeps_the_umask_of_the_shell_and_the_run_does_not(scheduler: str, tmp_path: Path) -> None:
    source, tokenizer, root = tmp_path / "text.jsonl", tmp_path / "tokenizer.json", tmp_path / "runs"
    write_jsonl(source, make_texts(1500))
    train_tokenizer([str(source)], column="text", vocab_size=300, path=tokenizer)
    words = (f"data.source={source}", f"data.tokenizer={tokenizer}", "data.validation=0.2", f"data.path={tmp_path}/out")
    asked = ("--nodes", "1", "run.tokens=10_240", f"cluster.scheduler={scheduler}", "cluster.cpus_per_task=1", *words)
    done = submit_without_data(root, *asked, "parallel.stages=1")
    assert done.returncode == 0, done.stderr
    run = wait(RunDir(root / "tiny"))
    assert run["job"]["state"] == "COMPLETED", run
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o644}
    # Slurm's own logs of the preparation have the umask of the dataset, in a directory that is closed
    said = [line for line in open_to_others(root) if scheduler == "local" or "/.prepare/" not in line]
    assert said == []
    assert stat.S_IMODE((root / ".prepare").stat().st_mode) == 0o700
