"""Numbers of real runs on their way to W&B, by the real client and a stand-in for its server."""

import signal
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.runs import losses, rank_processes, submit, verb, wait, wait_for_step
from tests.wandb_server import serve
from toolkit.rundir import RunDir

RUN = ("--nodes", "1", "cluster.scheduler=local", "monitor.wandb=auto", "run.tokens=40_960")


@pytest.mark.parametrize("mode", ["online", "offline, sent later"])
def test_all_attempts_of_a_run_arrive_in_one_wandb_run(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _ = make_dataset(tmp_path)
    run_dir = RunDir(tmp_path / "tiny")
    with serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("HOME", str(tmp_path))
        if mode == "online":
            monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        assert submit(tmp_path, dataset, *RUN).returncode == 0
        wait_for_step(run_dir, 5)
        rank_processes(run_dir)[0].send_signal(signal.SIGUSR2)
        run = wait(run_dir)
        assert [attempt["outcome"] for attempt in run["attempts"]] == ["REQUEUE", "FINISHED"], run
        if mode != "online":
            assert server.history == {}
            monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
            sent = verb(tmp_path, "sync", "tiny")
            assert sent.stdout.startswith("sent 2 attempts"), sent.stderr
            assert verb(tmp_path, "sync", "tiny").stdout == "nothing to send\n"
        assert list(server.history) == [run_dir.wandb_id_path.read_text(encoding="utf-8")]
        lines = next(iter(server.history.values()))
    assert [(line["step"], line["train/loss"]) for line in lines] == list(enumerate(losses(run_dir), start=1))
    assert "WANDB_API_KEY" not in (run_dir.script_path.read_text() + run_dir.config_path.read_text())
