"""Who a run is: the directory that was named, wherever it lies now; a copy of it is another run.

`identity.json` holds a word of the run's own and the place of its directory when it was submitted last. A directory
that lies elsewhere has been moved (the old place is gone) or is a copy (it is still there). What a copy tells of jobs
is the original's; when it is submitted it becomes a run of its own, which goes on from the copied checkpoints.
"""

import enum
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from toolkit import records, storage
from toolkit.config.load import COMMAND_LINE, Loaded, load_config
from toolkit.config.schema import RunConfig
from toolkit.errors import ConfigError, Problem, RecordError, RunError
from toolkit.rundir import RunDir


class Kin(enum.Enum):
    """What a run directory is."""

    OWN = "own"
    """The run itself, where it was submitted."""
    MOVED = "moved"
    """The run itself, elsewhere."""
    COPY = "copy"
    """A copy of a run whose directory is where it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The run that a directory belongs to."""

    run_id: str
    """In the marks of its jobs."""
    root: str
    """Its directory when it was submitted last."""


def read_identity(run_dir: RunDir) -> Identity | None:
    """Read whose directory it is; None: it was never submitted, or before runs had an identity.

    Raises:
        RecordError: it cannot be read.
    """
    try:
        return records.read_record(run_dir.identity_path, Identity)
    except RecordError as error:
        raise RecordError(
            f"{error}\n  by it the jobs of a run are found, and a copy is told from the run\n"
            f"  see that it has no job (squeue --me), then delete {run_dir.identity_path}"
        ) from error


def tell_kin(run_dir: RunDir) -> Kin:
    """Say whether a directory is the run that it was submitted as."""
    known = read_identity(run_dir)
    if known is None:
        return Kin.OWN
    there = RunDir(Path(known.root))
    try:
        if os.path.samefile(there.root, run_dir.root):  # also by another name of the same file system
            return Kin.OWN
        other = read_identity(there)
    except (OSError, RecordError):
        return Kin.MOVED
    return Kin.COPY if other is not None and other.run_id == known.run_id else Kin.MOVED


def original_of(run_dir: RunDir) -> Path | None:
    """Say of which directory this one is a copy; None: of none."""
    known = read_identity(run_dir)
    return Path(known.root) if known is not None and tell_kin(run_dir) is Kin.COPY else None


def settle(run_dir: RunDir) -> Identity:
    """Give the run of a directory that is submitted, and note where it lies: a new run if it has none or is a copy."""
    known = None if tell_kin(run_dir) is Kin.COPY else read_identity(run_dir)
    if known is None:
        forget_copied(run_dir)
        known = Identity(run_id=uuid.uuid4().hex[:12], root="")
    settled = replace(known, root=str(run_dir.root))
    if settled != known:
        storage.write_atomic(str(run_dir.identity_path), (json.dumps(asdict(settled)) + "\n").encode())
    return settled


def forget_copied(run_dir: RunDir) -> None:
    """Take away from a copy what names the original: its job, and its run at W&B."""
    if read_identity(run_dir) is not None:
        for path in (run_dir.job_path, run_dir.wandb_id_path):
            path.unlink(missing_ok=True)


def read_config(run_dir: RunDir) -> RunConfig:
    """Read the configuration of a run as it holds where its directory lies now."""
    return relocate(load_config(run_dir.config_path).config, run_dir.root)


def load_asked(run_dir: RunDir, settings: Sequence[str]) -> Loaded:
    """Load a run as it was asked for, to go on with it where its directory lies now.

    Args:
        run_dir: the run.
        settings: `key.path=value` of the command line, for changes.

    Raises:
        ConfigError: the file or a setting holds a mistake, or a setting makes it another run.
    """
    loaded = load_config(run_dir.asked_path, overrides=settings)  # the site profile was applied at the first submit
    run = loaded.config.run
    is_other = {"run.name": run.name != run_dir.name, "run.root": Path(run.root).absolute() != run_dir.root.parent}
    other = [key for key, differs in is_other.items() if differs and loaded.origins.get(key) == COMMAND_LINE]
    if other:
        raise ConfigError(
            [
                Problem(
                    f"{key} would be another run than {run_dir.root}  [{COMMAND_LINE}]",
                    "`resume` goes on with the run that it names, where it lies",
                    "a fork: cp -r the directory, then resume the copy; a new run: submit",
                )
                for key in other
            ]
        )
    return replace(loaded, config=relocate(loaded.config, run_dir.root))


def relocate(cfg: RunConfig, root: Path) -> RunConfig:
    """Make a run's directory the one it was read from: paths that lay in it move with it, others stay."""
    before = Path(cfg.run.root) / cfg.run.name
    run = replace(cfg.run, root=str(root.parent), name=root.name)
    if before == root:
        return cfg
    return replace(cfg, run=run, checkpoint=replace(cfg.checkpoint, dir=_move(cfg.checkpoint.dir, before, root)))


def _move(path: str | None, before: Path, after: Path) -> str | None:
    if path is None or not storage.is_local(path) or not storage.local_path(path).is_relative_to(before):
        return path
    return str(after / storage.local_path(path).relative_to(before))


def refuse_shared_checkpoints(run_dir: RunDir, cfg: RunConfig) -> None:
    """Raise where a copy would write its checkpoints over those of the original.

    Raises:
        RunError: checkpoint.dir is outside of the run's directory, so that the copy has the same.
    """
    original, place = original_of(run_dir), cfg.checkpoint.dir
    if original is None or place is None:
        return
    known = read_config(RunDir(original)).checkpoint.dir
    if known == place:
        raise RunError(
            f"run {run_dir.name} is a copy of {original}, and both save to {place}\n"
            "  two runs must not write the same checkpoints\n"
            f"  set checkpoint.dir to another place, or go on with the original: --root {original.parent}"
        )
