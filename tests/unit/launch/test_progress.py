"""A run that has lost its checkpoints never begins anew by itself; on purpose it does, and nothing is deleted."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.damage import make_run
from toolkit.checkpoint import layout
from toolkit.data.skips import Skip
from toolkit.errors import RefusedError, RunError
from toolkit.launch.identity import read_config
from toolkit.launch.ledger import Attempt, change_attempt, read_attempts
from toolkit.launch.progress import (
    accept_loss,
    find_saved,
    put_aside,
    refuse_loss,
    refuse_loss_here,
    saved_step,
)
from toolkit.rundir import RunDir

ATTEMPT = Attempt(attempt="1.0", job_id="1", nodes=("n",), layout="1 x 1", start_time=100.0)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """Give a run that was saved at step 9, and has that checkpoint."""
    run_dir = make_run(tmp_path / "runs", "r")
    change_attempt(run_dir, "1.1", saved_step=9)
    add_checkpoint(run_dir, 9)
    return run_dir


def add_checkpoint(run_dir: RunDir, step: int) -> Path:
    path = layout.step_dir(run_dir.checkpoints_dir, step=step)
    path.mkdir(parents=True)
    (path / layout.MARK_NAME).write_text("", encoding="utf-8")
    return path


def lose(run_dir: RunDir, step: int) -> None:
    layout.delete(layout.step_dir(run_dir.checkpoints_dir, step=step))


def refuse(run_dir: RunDir, *accept: str, from_scratch: bool = False, place: str | None = None) -> None:
    cfg = read_config(run_dir)
    cfg = replace(cfg, checkpoint=replace(cfg.checkpoint, dir=place))
    refuse_loss(run_dir, cfg, accept=accept, from_scratch=from_scratch)


def skip(back_to: int | None, time: float) -> Skip:
    return Skip(
        first_position=0, stop_position=1, step=9, back_to=back_to, reason="", attempt="1.0", time=time, samples={}
    )


def test_a_run_with_its_checkpoint_goes_on(run_dir: RunDir) -> None:
    refuse(run_dir)
    assert refuse_loss_here(run_dir, read_config(run_dir), step=9) is None


def test_a_run_whose_checkpoints_are_gone_is_refused_until_it_is_meant(run_dir: RunDir) -> None:
    lose(run_dir, 9)
    with pytest.raises(
        RefusedError, match=r"checkpoint: run r was saved up to step 9, and .*checkpoints has no"
    ) as told:
        refuse(run_dir)
    assert "--from-scratch" in str(told.value)
    with pytest.raises(RefusedError):
        refuse(run_dir, "checkpoint")  # there is nothing to go on from
    refuse(run_dir, from_scratch=True)


def test_another_place_for_checkpoints_is_no_reason_to_begin_anew(run_dir: RunDir, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"saved up to step 9, and .*/elsewhere has no checkpoint"):
        refuse(run_dir, place=str(tmp_path / "elsewhere"))


def test_an_older_checkpoint_is_gone_on_from_when_that_is_accepted(run_dir: RunDir) -> None:
    add_checkpoint(run_dir, 4)
    lose(run_dir, 9)
    with pytest.raises(RefusedError, match=r"has step 4 at most\n.*\n.*go on from step 4: --accept checkpoint"):
        refuse(run_dir)
    refuse(run_dir, "checkpoint")
    cfg = read_config(run_dir)
    assert "was saved up to step 9" in str(refuse_loss_here(run_dir, cfg, step=4)), "ranks hold to it too"
    accept_loss(run_dir, cfg)
    assert saved_step(run_dir) == 4
    assert refuse_loss_here(run_dir, cfg, step=4) is None


def test_what_was_set_aside_as_damaged_is_no_loss_that_stops_a_run(run_dir: RunDir) -> None:
    add_checkpoint(run_dir, 4)
    layout.set_aside(layout.step_dir(run_dir.checkpoints_dir, step=9))
    refuse(run_dir)
    assert refuse_loss_here(run_dir, read_config(run_dir), step=4) is None
    assert refuse_loss_here(run_dir, read_config(run_dir), step=0) is None


def test_from_scratch_does_not_pass_over_a_checkpoint(run_dir: RunDir) -> None:
    with pytest.raises(RunError, match=r"has a checkpoint of step 9 in .*\n.*\n.*move the checkpoints away"):
        refuse(run_dir, from_scratch=True)


def test_the_former_life_is_put_aside_whole(run_dir: RunDir) -> None:
    metrics = run_dir.metrics_path.read_bytes()
    run_dir.tensorboard_dir.mkdir()
    (run_dir.tensorboard_dir / "events").write_text("x", encoding="utf-8")
    assert put_aside(run_dir) == run_dir.former_dir(1)
    assert (run_dir.former_dir(1) / "metrics.jsonl").read_bytes() == metrics
    assert (run_dir.former_dir(1) / "tensorboard" / "events").is_file()
    assert (read_attempts(run_dir), saved_step(run_dir), run_dir.metrics_path.exists()) == ([], 0, False)
    assert put_aside(run_dir) is None
    run_dir.metrics_path.write_text("{}\n", encoding="utf-8")
    assert put_aside(run_dir) == run_dir.former_dir(2)


@pytest.mark.parametrize(
    ("attempts", "skips", "saved"),
    [
        ([], [], 0),
        ([ATTEMPT], [], 0),
        ([replace(ATTEMPT, saved_step=5), replace(ATTEMPT, attempt="1.1")], [], 5),
        ([replace(ATTEMPT, saved_step=9), replace(ATTEMPT, attempt="1.1", saved_step=5)], [], 5),
        ([replace(ATTEMPT, saved_step=9, end_time=200.0)], [skip(4, 150.0)], 9),
        ([replace(ATTEMPT, saved_step=9, end_time=200.0)], [skip(4, 250.0)], 4),
        ([replace(ATTEMPT, saved_step=9, end_time=200.0)], [skip(None, 250.0)], 9),
        ([replace(ATTEMPT, saved_step=9, end_time=200.0)], [skip(0, 250.0), skip(6, 260.0)], 0),
    ],
)
def test_the_newest_word_on_a_save_counts_and_a_way_back_after_bad_steps(
    attempts: list[Attempt], skips: list[Skip], saved: int
) -> None:
    assert find_saved(attempts, skips) == saved
