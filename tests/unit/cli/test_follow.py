"""Who follows a run looks at its files often, and asks the scheduler seldom."""

from pathlib import Path

import pytest

from tests.slurm_says import SlurmSays, shown
from toolkit.cli import follow
from toolkit.cli.follow import Watch
from toolkit.cluster.base import JobState
from toolkit.errors import RunError
from toolkit.launch.identity import settle
from toolkit.launch.ledger import Attempt, JobRecord, begin_attempt, change_attempt, write_job_record
from toolkit.rundir import RunDir


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(follow, "time", clock)
    return clock


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "runs" / "r")
    run_dir.root.mkdir(parents=True)
    mark = f"toolkit:{settle(run_dir).run_id}:1"
    write_job_record(run_dir, JobRecord(scheduler="slurm", job_id="12", attempts_before=0, mark=mark))
    return run_dir


def mark_of(run_dir: RunDir) -> str:
    return f"toolkit:{settle(run_dir).run_id}:1"


def test_a_minute_of_following_asks_four_times(run_dir: RunDir, slurm: SlurmSays, clock: Clock) -> None:
    slurm(job=shown("12", mark=mark_of(run_dir)))
    watch = Watch(run_dir)
    for _ in range(120):
        assert watch.is_live()
        clock.now_s += 0.5
    assert len(slurm.asked) == 4
    assert all(words.startswith("scontrol --local show job") for words in slurm.asked)


def test_a_change_in_the_ledger_is_asked_about_soon(run_dir: RunDir, slurm: SlurmSays, clock: Clock) -> None:
    slurm(job=shown("12", state="PENDING", mark=mark_of(run_dir)))
    watch = Watch(run_dir)
    first = watch.status()
    begin_attempt(run_dir, Attempt(attempt="12.0", job_id="12", nodes=("n1",), layout="", start_time=0.0))
    slurm(job=shown("12", mark=mark_of(run_dir)))
    clock.now_s += 2.0
    second = watch.status()
    assert first is not None
    assert second is not None
    assert (first.state, second.state) == (JobState.PENDING, JobState.RUNNING)
    change_attempt(run_dir, "12.0", outcome="FINISHED", next="nothing: all tokens are done")
    assert not watch.is_live()  # though the scheduler was not asked again
    assert len(slurm.asked) == 2


def test_silence_of_the_scheduler_ends_no_watch(run_dir: RunDir, slurm: SlurmSays, clock: Clock) -> None:
    slurm(job=shown("12", mark=mark_of(run_dir)))
    watch = Watch(run_dir)
    assert watch.is_live()
    (slurm.directory / "scontrol").write_text(
        "#!/bin/bash\necho 'error: Unable to contact' >&2; exit 1\n", encoding="utf-8"
    )
    clock.now_s += 20.0
    assert watch.is_live()


def test_where_no_rank_has_a_log_the_batch_log_is_named_and_its_end_shown(
    run_dir: RunDir, slurm: SlurmSays, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm()
    with pytest.raises(RunError, match="has no log of rank 0"):
        follow.print_log(run_dir, rank=0, follow=False)
    run_dir.logs_dir.mkdir()
    run_dir.batch_log_path("12").write_text("srun: error: Invalid generic resource\n", encoding="utf-8")
    follow.print_log(run_dir, rank=0, follow=False)
    path = run_dir.batch_log_path("12")
    assert capsys.readouterr().out == f"no rank has a log; the end of {path}:\nsrun: error: Invalid generic resource\n"
    run_dir.attempt_dir("12.0").mkdir()
    run_dir.rank_log_path("12.0", rank=0).touch()
    with pytest.raises(RunError, match="has no log of rank 9"):
        follow.print_log(run_dir, rank=9, follow=False)
