"""How far a run was saved, and what becomes of it where the checkpoints are not there.

The ledger of attempts knows the newest checkpoint at the end of each. A run that finds less has lost it (deleted, not
mounted, another checkpoint.dir), and never goes on from there by itself: it would do the steps again, and its metrics
would be gone.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.upload import list_remote
from toolkit.config.schema import RunConfig
from toolkit.data.skips import Skip, read_skips
from toolkit.errors import Problem, RefusedError, RunError
from toolkit.launch.gate.checks import CHECKPOINT
from toolkit.launch.ledger import Attempt, change_attempt, read_attempts
from toolkit.rundir import RunDir


def saved_step(run_dir: RunDir) -> int:
    """Say up to which step a run was saved when that was known last; 0: it was not."""
    return find_saved(read_attempts(run_dir), read_skips(run_dir.skips_path))


def find_saved(attempts: Sequence[Attempt], skips: Sequence[Skip]) -> int:
    """The same, pure: going back after bad steps deletes newer checkpoints on purpose."""
    known = _last_saved(attempts)
    if known is None:
        return 0
    ended = known.end_time or known.start_time
    back = [skip.back_to for skip in skips if skip.back_to is not None and skip.time > ended]
    return min([known.saved_step or 0, *back])


def _last_saved(attempts: Sequence[Attempt]) -> Attempt | None:
    return next((one for one in reversed(attempts) if one.saved_step is not None), None)


def refuse_loss(run_dir: RunDir, cfg: RunConfig, *, accept: Sequence[str], from_scratch: bool) -> None:
    """Raise where a run that is submitted would lose what it had saved, or would not begin at step 0 as is wanted.

    Raises:
        RefusedError: it has fewer steps than it had, and the user does not say that this is well.
        RunError: `from_scratch`, and there are checkpoints.
    """
    here = _newest_step(run_dir, cfg)
    if from_scratch and here:
        raise RunError(
            f"run {run_dir.name} has a checkpoint of step {here} in {_place(run_dir, cfg)}\n"
            "  it would go on from there, and nothing that was saved is deleted by itself\n"
            "  move the checkpoints away, or begin another run: --name NAME"
        )
    loss = _find_loss(run_dir, cfg, here)
    if loss is None or from_scratch or (here and CHECKPOINT in accept):
        return
    way = f"go on from step {here}: --accept {CHECKPOINT}" if here else "begin again at step 0: --from-scratch"
    raise RefusedError([Problem(f"{CHECKPOINT}: {loss[0]}", loss[1], f"bring it back; or {way}")])


def refuse_loss_here(run_dir: RunDir, cfg: RunConfig, *, step: int) -> str | None:
    """Say why an attempt that would begin at a step must not; None: it may."""
    loss = _find_loss(run_dir, cfg, step)
    return None if loss is None else "\n  ".join([*loss, "see where it is, then submit the run again"])


def _find_loss(run_dir: RunDir, cfg: RunConfig, step: int) -> tuple[str, str] | None:
    before = saved_step(run_dir)
    aside = [path.name for path in layout.list_damaged(run_dir.find_checkpoints(cfg.checkpoint.dir))]
    if step >= before or any(name >= layout.step_dir(Path(), step=step + 1).name for name in aside):
        return None  # what was damaged has been set aside, and said
    found = f"step {step} at most" if step else "no checkpoint"
    what = f"run {run_dir.name} was saved up to step {before}, and {_place(run_dir, cfg)} has {found}"
    return what, "it may not be mounted, may have been deleted, or checkpoint.dir is another one than before"


def _place(run_dir: RunDir, cfg: RunConfig) -> str:
    return cfg.checkpoint.dir or str(run_dir.checkpoints_dir)


def _newest_step(run_dir: RunDir, cfg: RunConfig) -> int:
    steps = layout.list_steps(run_dir.find_checkpoints(cfg.checkpoint.dir))
    if cfg.checkpoint.dir is not None and not storage.is_local(cfg.checkpoint.dir):
        steps += list(list_remote(cfg.checkpoint.dir)) if storage.exists(cfg.checkpoint.dir) else []
    return max(steps, default=0)


def accept_loss(run_dir: RunDir, cfg: RunConfig) -> None:
    """Note that a run goes on from an older checkpoint than it had."""
    known, here = _last_saved(read_attempts(run_dir)), _newest_step(run_dir, cfg)
    if known is not None and (known.saved_step or 0) > here:
        change_attempt(run_dir, known.attempt, saved_step=here)


def put_aside(run_dir: RunDir) -> Path | None:
    """Move what tells of a run's former life out of the way of one that begins at step 0; None: there is nothing.

    Logs stay: they are named by their attempts.
    """
    gone = [
        *(run_dir.metrics_path, run_dir.attempts_path, run_dir.skips_path, run_dir.expected_path),
        *(run_dir.tensorboard_dir, run_dir.wandb_id_path),
    ]
    there = [path for path in gone if os.path.lexists(path)]
    if not there:
        return None
    former = next(path for number in range(1, 10_000) if not (path := run_dir.former_dir(number)).exists())
    for path in there:
        target = former / path.relative_to(run_dir.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return former
