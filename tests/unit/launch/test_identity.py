"""Who a run is when its directory was moved, copied, or named by another path."""

import shutil
from pathlib import Path

import pytest

from toolkit.cluster.base import JobState
from toolkit.cluster.local import LocalCluster
from toolkit.config.load import dump_config
from toolkit.config.schema import CheckpointSection, RunConfig, RunSection
from toolkit.errors import ConfigError, RunError
from toolkit.launch.halt import halt
from toolkit.launch.identity import (
    Kin,
    load_asked,
    original_of,
    read_config,
    read_identity,
    refuse_shared_checkpoints,
    settle,
    tell_kin,
)
from toolkit.launch.jobs import find_job, job_status
from toolkit.launch.ledger import JobRecord, find_job_record, write_job_record
from toolkit.rundir import RunDir


def make_run(root: Path, *, checkpoints: str | None = None) -> RunDir:
    run_dir = RunDir(root / "orig")
    run_dir.root.mkdir(parents=True)
    cfg = RunConfig(
        run=RunSection(name="orig", root=str(root)), checkpoint=CheckpointSection(dir=checkpoints, save_every=7)
    )
    for path in (run_dir.config_path, run_dir.asked_path):
        path.write_text(dump_config(cfg), encoding="utf-8")
    settle(run_dir)
    return run_dir


def copy(run_dir: RunDir, name: str) -> RunDir:
    return RunDir(Path(shutil.copytree(run_dir.root, run_dir.root.with_name(name))))


def test_a_directory_stays_the_run_by_another_name_and_elsewhere_but_not_as_a_copy(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "runs")
    link = tmp_path / "link"
    link.symlink_to(run_dir.root.parent)
    assert tell_kin(RunDir(link / "orig")) is Kin.OWN
    fork = copy(run_dir, "fork")
    assert (tell_kin(fork), original_of(fork)) == (Kin.COPY, run_dir.root)
    assert tell_kin(run_dir) is Kin.OWN
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    moved = RunDir(tmp_path / "elsewhere" / "orig")
    assert tell_kin(moved) is Kin.MOVED
    known = read_identity(moved)
    assert known is not None
    assert settle(moved).run_id == known.run_id  # the same run, which lies here now
    assert tell_kin(moved) is Kin.OWN


def test_a_place_that_was_taken_by_another_run_makes_no_copy(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "runs")
    run_dir.root.rename(tmp_path / "runs" / "old")
    make_run(tmp_path / "runs")
    assert tell_kin(RunDir(tmp_path / "runs" / "old")) is Kin.MOVED


def test_a_copy_becomes_a_run_of_its_own_when_it_is_settled(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "runs")
    write_job_record(run_dir, JobRecord(scheduler="local", job_id="1", attempts_before=0))
    run_dir.wandb_id_path.parent.mkdir()
    run_dir.wandb_id_path.write_text("abc", encoding="utf-8")
    fork = copy(run_dir, "fork")
    identity = settle(fork)
    assert identity.run_id != settle(run_dir).run_id
    assert find_job_record(fork) is None
    assert not fork.wandb_id_path.exists()
    assert run_dir.wandb_id_path.exists()
    assert tell_kin(fork) is Kin.OWN
    assert settle(fork) == identity


def test_the_directory_that_is_named_is_the_run_that_goes_on(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "runs", checkpoints=str(tmp_path / "runs" / "orig" / "saved"))
    fork = copy(run_dir, "a fork, [2]")
    for cfg in (load_asked(fork, ["optim.peak_lr=1e-4"]).config, read_config(fork)):
        assert (cfg.run.root, cfg.run.name) == (str(tmp_path / "runs"), "a fork, [2]")
        assert cfg.checkpoint.dir == str(fork.root / "saved")
        assert cfg.checkpoint.save_every == 7
    refuse_shared_checkpoints(fork, read_config(fork))


@pytest.mark.parametrize("setting", ["run.name=b", "run.root=elsewhere"])
def test_a_setting_that_names_a_run_is_refused_where_a_run_was_named(tmp_path: Path, setting: str) -> None:
    run_dir = make_run(tmp_path)
    with pytest.raises(ConfigError, match=rf"{setting.partition('=')[0]} would be another run than {run_dir.root}"):
        load_asked(run_dir, ["optim.peak_lr=1e-4", setting])
    load_asked(run_dir, [f"run.name={run_dir.name}", f"run.root={tmp_path}"])


def test_a_copy_does_not_save_where_the_original_does(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "runs", checkpoints=str(tmp_path / "saved"))
    refuse_shared_checkpoints(run_dir, read_config(run_dir))
    fork = copy(run_dir, "fork")
    with pytest.raises(RunError, match="both save to"):
        refuse_shared_checkpoints(fork, read_config(fork))
    other = load_asked(fork, [f"checkpoint.dir={tmp_path}/other"]).config
    refuse_shared_checkpoints(fork, other)


def test_what_a_copy_tells_of_jobs_is_not_acted_on(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "runs")
    cluster = LocalCluster(tmp_path / "runs" / ".cluster")
    job_dir = cluster.state_dir / "jobs" / "1"
    job_dir.mkdir(parents=True)
    write_job_record(run_dir, JobRecord(scheduler="local", job_id="1", attempts_before=0))
    assert find_job(run_dir) is not None
    fork = copy(run_dir, "fork")
    assert job_status(fork) is None
    with pytest.raises(RunError, match=f"run fork is a copy of {run_dir.root}: it has no job of its own"):
        halt(fork, how="cancel")
    assert not fork.halt_path.exists()


def test_a_forgotten_job_is_unknown(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "runs")
    write_job_record(run_dir, JobRecord(scheduler="local", job_id="3", attempts_before=0))
    status = job_status(run_dir)
    assert status is not None
    assert status.state is JobState.UNKNOWN
