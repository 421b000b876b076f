"""Names, completeness, the newest one, retention: what a checkpoint directory is, without torch.

step-00001200/
  part-00000.safetensors ...   fp32 weights and moments, full tensors under layout-free names
  index.json                   what the run was, which file holds which tensor, size and checksum of each
  COMPLETE                     last; readers trust only directories that have it
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError

FORMAT_VERSION = 1
KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""What is stored of each parameter; the moments are Adam's."""

MARK_NAME = "COMPLETE"
INDEX_NAME = "index.json"

_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file of tensors."""

    path: str
    num_bytes: int
    xxh3: str
    tensors: tuple[str, ...]
    """Parameter names; each has all `KINDS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What a checkpoint holds and what it belongs to."""

    step: int
    """Optimizer steps done."""
    tokens_per_step: int
    seed: int
    dataset: str
    """Fingerprint of the token dataset."""
    model: dict[str, Any]
    parts: tuple[Part, ...]
    format_version: int = FORMAT_VERSION


def part_name(number: int) -> str:
    """Name a file of tensors."""
    return f"part-{number:05d}.safetensors"


def step_dir(checkpoints_dir: Path, *, step: int) -> Path:
    """Name the directory of a complete checkpoint."""
    return checkpoints_dir / f"step-{step:08d}"


def partial_dir(checkpoints_dir: Path, *, step: int) -> Path:
    """Name the directory a checkpoint is written in before it is renamed."""
    return checkpoints_dir / f"step-{step:08d}.partial"


def list_steps(checkpoints_dir: Path) -> list[int]:
    """List the steps of the complete checkpoints, oldest first."""
    if not checkpoints_dir.is_dir():
        return []
    names = (entry for entry in checkpoints_dir.iterdir() if (entry / MARK_NAME).is_file())
    return sorted(step for entry in names if (step := step_of(entry.name)) is not None)


def step_of(name: str) -> int | None:
    """Read the step out of the name of a complete checkpoint; None: it is no such name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def newest(checkpoints_dir: Path) -> Path | None:
    """Find the newest complete checkpoint; None: there is none."""
    steps = list_steps(checkpoints_dir)
    return step_dir(checkpoints_dir, step=steps[-1]) if steps else None


def doomed_steps(steps: Sequence[int], *, keep: int, keep_every: int | None) -> list[int]:
    """List the steps to delete: all but the newest `keep` and the multiples of `keep_every`."""
    assert keep >= 1, f"keep={keep} would delete the last checkpoint"
    older = sorted(steps)[:-keep]
    return [step for step in older if not keep_every or step % keep_every]


def delete(checkpoint_dir: Path) -> None:
    """Delete a checkpoint, its marker first, so that a half-deleted one is never trusted."""
    (checkpoint_dir / MARK_NAME).unlink(missing_ok=True)
    shutil.rmtree(checkpoint_dir)


def write_index(directory: Path, index: Index) -> None:
    """Write the index, then the marker."""
    (directory / INDEX_NAME).write_text(json.dumps(asdict(index), indent=1) + "\n", encoding="utf-8")
    (directory / MARK_NAME).touch()


def read_index(checkpoint_dir: Path) -> Index:
    """Read the index of a complete checkpoint.

    Raises:
        CheckpointError: no marker, no index, or one that cannot be read.
    """
    if not (checkpoint_dir / MARK_NAME).is_file():
        raise CheckpointError(
            f"{checkpoint_dir} is no complete checkpoint\n  it has no file {MARK_NAME}\n"
            "  use another one; `toolkit status RUN` lists those that are complete"
        )
    path = checkpoint_dir / INDEX_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return parse_index(data, origin=str(path))


def parse_index(data: bytes, *, origin: str) -> Index:
    """Understand an index.

    Raises:
        CheckpointError: it has another format, or is damaged; the text names `origin`.
    """
    try:
        fields = json.loads(data)
        if fields["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{origin} has format {fields['format_version']}; this toolkit reads {FORMAT_VERSION}"
            )
        parts = tuple(Part(**{**part, "tensors": tuple(part["tensors"])}) for part in fields.pop("parts"))
        return Index(**fields, parts=parts)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{origin} is damaged: {error}\n  use another checkpoint") from error


def check_parts(checkpoint_dir: Path, parts: Sequence[Part]) -> list[str]:
    """Compare the size of each file with the index; give a sentence for each that differs."""
    problems = []
    for part in parts:
        path = checkpoint_dir / part.path
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != part.num_bytes:
            problems.append(f"{path} has {path.stat().st_size} bytes instead of {part.num_bytes}")
    return problems


def bytes_needed(num_parameters: int) -> int:
    """Reckon the size of a checkpoint: three fp32 tensors a parameter."""
    return num_parameters * 4 * len(KINDS)
