"""Save and load, all ranks together: each writes its share beside, rank 0 completes and renames."""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from toolkit.checkpoint import layout
from toolkit.checkpoint.layout import KINDS, Index, Part
from toolkit.checkpoint.reader import TensorReader
from toolkit.checkpoint.reshard import Weights, read_state, write_state
from toolkit.distributed import World
from toolkit.errors import CheckpointError

log = logging.getLogger(__name__)

_PIECE_BYTES = 8 << 20


def save(
    engine: Any,
    weights: Weights,
    checkpoints_dir: Path,
    *,
    world: World,
    replica: int,
    replicas: int,
    index: Index,
) -> Path:
    """Write a complete checkpoint, or raise on every rank and leave a partial one.

    Args:
        engine: the DeepSpeed engine.
        weights: this rank's parameters under layout-free names, the same order on all replicas of a stage.
        checkpoints_dir: directory that holds the checkpoints of the run.
        world: the ranks.
        replica: this rank's data-parallel index; replica r writes every `replicas`-th parameter from r on.
        replicas: how many there are.
        index: what to record; `parts` is filled in.

    Raises:
        CheckpointError: a rank could not write; the text names it.
    """
    final = layout.step_dir(checkpoints_dir, step=index.step)
    partial = layout.partial_dir(checkpoints_dir, step=index.step)
    problem = _prepare(partial) if world.rank == 0 else None
    _raise_together(world, problem)
    share = _collect_share(engine, weights, replica=replica, replicas=replicas)
    part, problem = _write_part(partial, share, number=world.rank)
    _raise_together(world, problem)
    parts = [part for part in world.gather(part) if part is not None]
    problem = _complete(partial, final, replace(index, parts=tuple(parts))) if world.rank == 0 else None
    _raise_together(world, problem)
    return final


def _prepare(partial: Path) -> str | None:
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        return str(error)
    return None


def _collect_share(engine: Any, weights: Weights, *, replica: int, replicas: int) -> dict[str, Tensor]:
    share = {}
    for number, (name, tensors) in enumerate(read_state(engine, weights)):
        if number % replicas == replica:
            for kind in KINDS:
                share[f"{kind}/{name}"] = tensors[kind].detach().float().cpu().contiguous().clone()
    return share


def _write_part(partial: Path, share: dict[str, Tensor], *, number: int) -> tuple[Part | None, str | None]:
    if not share:
        return None, None
    path = partial / layout.part_name(number)
    try:
        save_file(share, path)
        _fsync(path)
        names = tuple(key.split("/", 1)[1] for key in share if key.startswith("weight/"))
        part = Part(path=path.name, num_bytes=path.stat().st_size, xxh3=_checksum(path), tensors=names)
    except (OSError, SafetensorError) as error:
        return None, f"{path}: {error}"
    return part, None


def _complete(partial: Path, final: Path, index: Index) -> str | None:
    try:
        layout.write_index(partial, index)
        for entry in partial.iterdir():
            _fsync(entry)
        _fsync(partial)
        if final.exists():  # redone after a rollback, or left without its marker
            layout.delete(final)
        partial.rename(final)
        _fsync(final.parent)
    except OSError as error:
        return str(error)
    return None


def _raise_together(world: World, problem: str | None) -> None:
    """Let every rank know of a problem on any of them: the next collective would wait for ever otherwise."""
    if not world.agree([problem is not None])[0]:
        return
    told = [f"{world.name_of(rank)}: {text}" for rank, text in enumerate(world.gather(problem)) if text]
    raise CheckpointError(
        "the checkpoint could not be written\n  "
        + "\n  ".join(told)
        + "\n  free space, or set checkpoint.dir elsewhere"
    )


def load(engine: Any, weights: Weights, checkpoint_dir: Path, *, world: World, expected: Index) -> Index:
    """Load a checkpoint that any layout has written; verify every file first.

    Raises:
        CheckpointError: it is partial or damaged, or belongs to another run; on every rank.
    """
    index = layout.read_index(checkpoint_dir)
    _raise_foreign(checkpoint_dir, index, expected)
    mine = index.parts[world.rank :: world.size]  # each rank verifies a share
    problems = layout.check_parts(checkpoint_dir, mine) or _compare_checksums(checkpoint_dir, mine)
    told = [line for lines in world.gather(problems) for line in lines]
    if told:
        raise CheckpointError("the checkpoint is damaged\n  " + "\n  ".join(told) + "\n  delete it to use an older one")
    with TensorReader(checkpoint_dir, index) as reader:
        write_state(engine, weights, reader.read, step=index.step)
    return index


def _compare_checksums(checkpoint_dir: Path, parts: Sequence[Part]) -> list[str]:
    return [
        f"{checkpoint_dir / part.path} does not have the checksum it was written with"
        for part in parts
        if _checksum(checkpoint_dir / part.path) != part.xxh3
    ]


def _raise_foreign(checkpoint_dir: Path, index: Index, expected: Index) -> None:
    checked = ("dataset", "model", "tokens_per_step", "seed")
    differing = [name for name in checked if getattr(index, name) != getattr(expected, name)]
    if differing:
        lines = [f"{name}: {getattr(index, name)} then, {getattr(expected, name)} now" for name in differing]
        raise CheckpointError(
            f"{checkpoint_dir} belongs to another run\n  " + "\n  ".join(lines) + "\n  give the run another run.name"
        )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
