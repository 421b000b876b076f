"""What is left of a run when its job was refused, or when nobody can tell."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.gate import CONFIG
from tests.runs import CHECKOUT
from toolkit.cluster.commands import UndecidedError
from toolkit.cluster.local import LocalCluster
from toolkit.cluster.spec import JobSpec
from toolkit.config.load import load_config
from toolkit.errors import ClusterError, HeldError, StorageError
from toolkit.launch.handin import carry_out
from toolkit.launch.identity import read_identity
from toolkit.launch.ledger import JobRecord, find_job_record, write_job_record
from toolkit.launch.planning import Site
from toolkit.launch.submit import Request, prepare_request
from toolkit.lock import hold
from toolkit.rundir import RunDir


class Answers(LocalCluster):
    """Answers with an error, or with a number."""

    def __init__(self, state_dir: Path, answer: BaseException | str) -> None:
        super().__init__(state_dir)
        self.answer = answer
        self.record_at_submit: JobRecord | None = None

    def submit(self, spec: JobSpec, *, script_path: Path) -> str:
        self.spec, self.record_at_submit = spec, find_job_record(RunDir(script_path.parent))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def request(root: Path, answer: BaseException | str) -> Request:
    dataset, _ = make_dataset(root)
    fixed = ["cluster.scheduler=local", f"run.root={root}/runs", "model.vocab_size=320", f"data.path={dataset}"]
    loaded = load_config(CONFIG, overrides=fixed)
    asked = prepare_request(loaded, Site(folder=root, hardware={}, measurements=()))
    return replace(asked, cluster=Answers(root / "runs" / ".cluster", answer))


def test_a_job_that_was_refused_leaves_nothing_of_a_new_run(tmp_path: Path) -> None:
    asked = request(tmp_path, ClusterError("no"))
    with pytest.raises(ClusterError, match="no"):
        carry_out(asked)
    assert not asked.run_dir.root.exists()


def test_a_job_that_was_refused_leaves_the_record_of_a_run_as_it_was(tmp_path: Path) -> None:
    asked = request(tmp_path, ClusterError("no"))
    before = JobRecord(scheduler="local", job_id="3", attempts_before=0)
    asked.run_dir.root.mkdir(parents=True)
    asked.run_dir.config_path.write_text("", encoding="utf-8")
    write_job_record(asked.run_dir, before)
    with pytest.raises(ClusterError, match="no"):
        carry_out(replace(asked, known=before))
    assert find_job_record(asked.run_dir) == before


def test_where_nobody_can_tell_whether_it_was_taken_all_stays_that_a_taken_job_needs(tmp_path: Path) -> None:
    asked = request(tmp_path, UndecidedError("submit x", "Socket timed out", mark="m"))
    with pytest.raises(UndecidedError):
        carry_out(asked)
    cluster = asked.cluster
    assert isinstance(cluster, Answers)
    record, identity = find_job_record(asked.run_dir), read_identity(asked.run_dir)
    assert record is not None
    assert identity is not None
    assert (record.job_id, record.mark) == ("", cluster.spec.mark)
    assert record.mark.startswith(f"toolkit:{identity.run_id}:")
    assert (cluster.spec.work_dir / "toolkit" / "launch" / "job.py").is_file()


def test_the_record_is_there_before_the_job_is_handed_in(tmp_path: Path) -> None:
    asked = request(tmp_path, "12")
    assert carry_out(asked) == "12"
    cluster = asked.cluster
    assert isinstance(cluster, Answers)
    assert cluster.record_at_submit is not None
    assert find_job_record(asked.run_dir) == replace(cluster.record_at_submit, job_id="12")


def test_of_two_that_submit_a_run_at_once_one_is_told_so(tmp_path: Path) -> None:
    asked = request(tmp_path, "12")
    asked.run_dir.root.parent.mkdir(parents=True)
    with hold(asked.run_dir.submit_lock_path, what="it is held"):
        with pytest.raises(HeldError, match=r"is being submitted by another process: host .*, pid \d+, user .*, since"):
            carry_out(asked)
        assert not asked.run_dir.root.exists(), "who comes second makes nothing"
    assert carry_out(asked) == "12"
    assert not asked.run_dir.submit_lock_path.exists()


STEPS = ["freeze_code", "settle", "accept_loss", "plan_text", "write_expected", "write_job_record", "new_mark"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), RecursionError()])
@pytest.mark.parametrize("step", STEPS)
def test_a_submission_that_breaks_off_leaves_nothing_of_a_new_run(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, "12")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"toolkit.launch.handin.{step}", fail)
    with pytest.raises((type(error), StorageError)):
        carry_out(asked)
    assert not list((tmp_path / "runs").glob("*"))
    monkeypatch.undo()
    assert carry_out(asked) == "12"


def test_what_stood_in_the_directory_before_is_not_deleted(tmp_path: Path) -> None:
    asked = request(tmp_path, ClusterError("no"))
    asked.run_dir.root.mkdir(parents=True)
    (asked.run_dir.root / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ClusterError, match="no"):
        carry_out(asked)
    assert (asked.run_dir.root / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_ctrl_c_while_the_scheduler_is_asked_keeps_what_a_job_needs(tmp_path: Path) -> None:
    asked = request(tmp_path, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        carry_out(asked)
    record = find_job_record(asked.run_dir)
    assert record is not None
    assert record.mark
    assert asked.run_dir.config_path.is_file()


def test_of_many_that_submit_a_run_at_once_one_has_a_job(tmp_path: Path) -> None:
    """Real processes, on emulated nodes: one job, one directory, and a sentence for the others."""
    dataset, _ = make_dataset(tmp_path)
    command = [sys.executable, str(CHECKOUT / "submit.py"), str(CONFIG), "--name", "r", "cluster.scheduler=local"]
    command += [f"run.root={tmp_path}/runs", "model.vocab_size=320", f"data.path={dataset}", "run.tokens=1024"]
    command += ["optim.warmup_tokens=0", "monitor.wandb=off"]
    environ = {**os.environ, "HOME": str(tmp_path)}
    starts = [
        subprocess.Popen(command, cwd=CHECKOUT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ends = [(*start.communicate(timeout=100), start.returncode) for start in starts]
    try:
        assert sorted(code for *_, code in ends)[0] == 0, ends
        for _, err, code in ends:
            assert "Traceback" not in err
            assert code == 0 or ("r is being submitted by another process" in err or "run r is live" in err), err
        jobs = list((tmp_path / "runs" / ".cluster" / "jobs").iterdir())
        assert len(jobs) == sum(code == 0 for *_, code in ends) == 1, ends
    finally:
        cluster = LocalCluster(tmp_path / "runs" / ".cluster")
        for job in cluster.own_jobs():
            if job.state.is_live:
                cluster.cancel(job.job_id)
        deadline = time.monotonic() + 30
        while any(job.state.is_live for job in cluster.own_jobs()) and time.monotonic() < deadline:
            time.sleep(0.1)
