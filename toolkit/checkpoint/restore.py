"""Find the newest whole checkpoint and load it on any layout: all ranks come to the same verdict."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint import layout
from toolkit.checkpoint.layout import MARK_NAME, DamagedError, Index, Part
from toolkit.checkpoint.parts import find_damage
from toolkit.checkpoint.reader import TensorReader
from toolkit.checkpoint.reshard import Weights, write_state
from toolkit.checkpoint.upload import Mirror
from toolkit.distributed import World
from toolkit.errors import CheckpointError, StorageError, TryAgainError

log = logging.getLogger(__name__)

_TOLD = 3  # sentences of a rank: a thousand ranks may each find something


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The checkpoint that was loaded."""

    path: Path
    index: Index
    passed_over: tuple[str, ...]
    """What was wrong with newer ones, a sentence each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """What rank 0 has found; at most one of `path` and `refusal` is given."""

    path: Path | None
    mark: bytes
    """Its marker, so that all ranks read the same index."""
    refusal: str | None
    passed_over: tuple[str, ...]
    is_passing: bool = False
    """The refusal may be another one next time: a file system did not answer."""


def load(
    engine: Any,
    weights: Weights,
    checkpoints_dir: Path,
    *,
    world: World,
    expected: Index,
    mirror: Mirror | None,
    up_to: int | None,
) -> Loaded | None:
    """Load the newest whole checkpoint, written by any layout; all ranks together.

    Every byte is compared with its checksum first, each rank comparing a share of the files. A damaged checkpoint is
    renamed and passed over; the mirror's copy of its step is taken before an older one.

    Args:
        engine: the DeepSpeed engine.
        weights: this rank's parameters under layout-free names.
        checkpoints_dir: directory that holds the checkpoints of the run.
        world: the ranks.
        expected: what the run is; `step`, `updates` and `parts` do not count.
        mirror: where checkpoints are copied to; on rank 0.
        up_to: go back to this step or before it, and delete the checkpoints after it once that is done: they come
            of steps that shall not have been. None: the newest. No save may be on its way.

    Returns:
        None: there is no checkpoint, and never was one.

    Raises:
        CheckpointError: all there are damaged, or the newest belongs to another run; on every rank.
        TryAgainError: a rank cannot read what rank 0 can, or a file system does not answer; the latter on every rank.
    """
    passed_over: list[str] = []
    while True:
        found = _choose(checkpoints_dir, expected, mirror, up_to) if world.rank == 0 else None
        choice: _Choice = world.gather(found)[0]
        passed_over += choice.passed_over
        if choice.refusal is not None:
            raise (TryAgainError if choice.is_passing else CheckpointError)(choice.refusal)
        if choice.path is None:
            return None
        index, damage = _verify(choice.path, choice.mark, world)
        if index is not None and not damage:
            break
        passed_over += damage
        if world.rank == 0:
            _set_aside(choice.path, damage)
    with TensorReader(choice.path, index) as reader:
        write_state(engine, weights, reader.read_range, updates=index.updates)
    if up_to is not None:
        world.gather(None)  # all have read theirs
        if world.rank == 0:
            _delete_newer(checkpoints_dir, mirror, step=index.step)
    return Loaded(path=choice.path, index=index, passed_over=tuple(passed_over))


def _delete_newer(checkpoints_dir: Path, mirror: Mirror | None, *, step: int) -> None:
    try:
        for newer in layout.list_steps(checkpoints_dir):
            if newer > step:
                log.warning("deleting the checkpoint of step %d: the run went back to step %d", newer, step)
                layout.delete(layout.step_dir(checkpoints_dir, step=newer))
        if mirror is not None:
            mirror.delete_newer(step)
    except (OSError, StorageError) as error:
        log.warning("checkpoints after step %d could not be deleted; delete them by hand: %s", step, error)


def _choose(checkpoints_dir: Path, expected: Index, mirror: Mirror | None, up_to: int | None) -> _Choice:
    """Find the newest checkpoint that has a sound index, on rank 0; set aside what has none."""
    passed_over: list[str] = []
    try:
        while True:
            if mirror is not None:
                mirror.restore(up_to=up_to)
            steps = [step for step in layout.list_steps(checkpoints_dir) if up_to is None or step <= up_to]
            newest = max(steps, default=-1)
            unmarked = [step for step in layout.list_unmarked(checkpoints_dir) if step > newest]
            if unmarked:
                path = layout.step_dir(checkpoints_dir, step=unmarked[-1])
                passed_over.append(f"{path} has no file {MARK_NAME}")
                _set_aside(path, passed_over[-1:])
                continue
            if not steps:
                return _refuse_beginning_anew(checkpoints_dir, passed_over)
            path = layout.step_dir(checkpoints_dir, step=newest)
            try:
                index = layout.read_index(path)
            except DamagedError as error:
                passed_over.append(str(error))
                _set_aside(path, passed_over[-1:])
                continue
            refusal = _find_foreign(path, index, expected)
            mark = (path / MARK_NAME).read_bytes()
            return _Choice(path=path, mark=mark, refusal=refusal, passed_over=tuple(passed_over))
    except (CheckpointError, StorageError, OSError) as error:
        is_passing = not isinstance(error, CheckpointError)
        told = tuple(passed_over)
        return _Choice(path=None, mark=b"", refusal=str(error), passed_over=told, is_passing=is_passing)


def _refuse_beginning_anew(checkpoints_dir: Path, passed_over: Sequence[str]) -> _Choice:
    damaged = layout.list_damaged(checkpoints_dir)
    refusal = None
    if damaged:
        refusal = (
            f"{checkpoints_dir} has no whole checkpoint, only {', '.join(path.name for path in damaged)}\n"
            "  a run never begins anew by itself where it had come further\n"
            "  bring one back, or delete these to begin from step 0"
        )
    return _Choice(path=None, mark=b"", refusal=refusal, passed_over=tuple(passed_over))


def _set_aside(path: Path, damage: Sequence[str]) -> None:
    aside = layout.set_aside(path)
    log.warning("passed over, and renamed to %s:\n  %s", aside.name, "\n  ".join(damage))


def _verify(path: Path, mark: bytes, world: World) -> tuple[Index | None, list[str]]:
    """Compare all files with the index, each rank a share.

    Returns:
        The index, and what rank 0 finds damaged too: a sentence each, the same on all ranks.

    Raises:
        TryAgainError: rank 0 finds nothing wrong where another rank does; that one's node is in trouble.
    """
    index, found, unread = None, {}, None
    try:
        index = layout.read_index(path)
        if (path / MARK_NAME).read_bytes() != mark:
            unread = f"{path} is another one than rank 0 sees"
        mine = index.parts[world.rank :: world.size]
        found = {part.path: damage for part in mine if (damage := find_damage(path, part))}
    except (CheckpointError, OSError) as error:
        unread = str(error)
    told = world.gather((dict(list(found.items())[:_TOLD]), unread))
    if not any(found or unread for found, unread in told):
        return index, []
    suspects = {name for found, _ in told for name in found}
    damage = world.gather(_confirm(path, suspects) if world.rank == 0 else None)[0]
    if not damage:
        lines = [
            f"{world.name_of(rank)}: {text}" for rank, (found, unread) in enumerate(told)
            for text in [*found.values(), *([unread] if unread else [])]
        ]  # fmt: skip
        raise TryAgainError(
            f"{path} cannot be read everywhere\n  "
            + "\n  ".join(lines[:8])
            + "\n  it is sound where it can be read: look at the file system of those nodes"
        )
    return index, damage


def _confirm(path: Path, suspects: set[str]) -> list[str]:
    """Look on rank 0 at what others complain of: a node that cannot read condemns no checkpoint."""
    try:
        parts: Sequence[Part] = layout.read_index(path).parts
        return [damage for part in parts if part.path in suspects and (damage := find_damage(path, part))]
    except CheckpointError as error:
        return [str(error)]
    except OSError as error:  # its server is away from here too: that condemns nothing, and all ranks try again
        log.warning("%s cannot be read: %s", path, error)
        return []


def _find_foreign(path: Path, index: Index, expected: Index) -> str | None:
    checked = ("dataset", "model", "tokens_per_step", "seed")
    differing = [name for name in checked if getattr(index, name) != getattr(expected, name)]
    if not differing:
        return None
    lines = [f"{name}: {getattr(index, name)} then, {getattr(expected, name)} now" for name in differing]
    return f"{path} belongs to another run\n  " + "\n  ".join(lines) + "\n  give the run another run.name"
