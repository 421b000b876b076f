"""Nothing of a run is open to others, whatever the umask, and no secret that a job is given is written anywhere."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.dataset import make_dataset
from tests.runs import submit, verb, wait, wait_for_step
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
