"""What is left of a run when its job was refused, or when nobody can tell."""

import fcntl
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from tests.gate import CONFIG
from toolkit.cluster.commands import UndecidedError
from toolkit.cluster.local import LocalCluster
from toolkit.cluster.spec import JobSpec
from toolkit.config.load import load_config
from toolkit.errors import ClusterError, RunError
from toolkit.launch.handin import carry_out
from toolkit.launch.identity import read_identity
from toolkit.launch.ledger import JobRecord, find_job_record, write_job_record
from toolkit.launch.planning import Site
from toolkit.launch.submit import Request, prepare_request
from toolkit.rundir import RunDir


class Answers(LocalCluster):
    """Answers with an error, or with a number."""

    def __init__(self, state_dir: Path, answer: ClusterError | str) -> None:
        super().__init__(state_dir)
        self.answer = answer
        self.record_at_submit: JobRecord | None = None

    def submit(self, spec: JobSpec, *, script_path: Path) -> str:
        self.spec, self.record_at_submit = spec, find_job_record(RunDir(script_path.parent))
        if isinstance(self.answer, ClusterError):
            raise self.answer
        return self.answer


def request(root: Path, answer: ClusterError | str) -> Request:
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
    asked.run_dir.root.mkdir(parents=True)
    with asked.run_dir.submit_lock_path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is being submitted by another command"):
            carry_out(asked)
    assert [path.name for path in asked.run_dir.root.iterdir()] == ["submit.lock"]
    assert carry_out(asked) == "12"
