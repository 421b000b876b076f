"""What a checkpoint directory is, without torch: names, index, marker, what is whole, what is kept.

step-00001200/
  part-00000.safetensors ...   fp32 weights and moments: the slices that one rank holds, under layout-free names
  index.json                   what the run was, which slice lies in which file, size and checksum of each file
  COMPLETE                     last; holds the checksum of the index, so that a damaged byte anywhere is found
step-00001300.0a1b2c3d.partial/   being written, or left by an attempt that was killed; never read
step-00001100.damaged/            was found damaged at a load; kept to be looked at until its room is needed
"""

import errno
import json
import math
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from toolkit.errors import CheckpointError
from toolkit.fields import build
from toolkit.storage import is_inner

FORMAT_VERSION = 2
"""Format 1 (full tensors, an empty marker) is not read any more."""
KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""What is stored of each parameter, in this order; the moments are Adam's."""

MARK_NAME = "COMPLETE"
INDEX_NAME = "index.json"

UNREACHED = frozenset(
    {errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
"""What a network file system says of its server, not of the file: no reason to pass over a checkpoint."""

_PARTIAL = ".partial"
_DAMAGED = ".damaged"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A range of a parameter, counted in its flattened elements."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        """Elements of the range."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file: the slices of one rank, each with all `KINDS`."""

    path: str
    num_bytes: int
    xxh3: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What a checkpoint holds and what it belongs to."""

    step: int
    """Steps done, those that were not applied too."""
    updates: int
    """Steps that the optimizer has applied: what Adam corrects its moments by."""
    tokens_per_step: int
    seed: int
    dataset: str
    """Fingerprint of the token dataset."""
    model: dict[str, Any]
    parts: tuple[Part, ...]
    format_version: int = FORMAT_VERSION

    @property
    def num_bytes(self) -> int:
        """Size of all parts."""
        return sum(part.num_bytes for part in self.parts)


def part_name(number: int) -> str:
    """Name a file of slices."""
    return f"part-{number:05d}.safetensors"


def step_dir(checkpoints_dir: Path, *, step: int) -> Path:
    """Name the directory of a complete checkpoint."""
    return checkpoints_dir / f"step-{step:08d}"


def partial_dir(checkpoints_dir: Path, *, step: int, token: str) -> Path:
    """Name the directory a checkpoint is written in before it is renamed.

    Args:
        checkpoints_dir: directory of the run's checkpoints.
        step: steps done.
        token: another one each time, so that an attempt that should be dead never writes into a living one's.
    """
    return checkpoints_dir / f"step-{step:08d}.{token}{_PARTIAL}"


def list_steps(checkpoints_dir: Path) -> list[int]:
    """List the steps of the complete checkpoints, oldest first."""
    return [step for step, is_marked in _list_dirs(checkpoints_dir) if is_marked]


def list_unmarked(checkpoints_dir: Path) -> list[int]:
    """List the steps of directories that have lost their marker, oldest first."""
    return [step for step, is_marked in _list_dirs(checkpoints_dir) if not is_marked]


def list_damaged(checkpoints_dir: Path) -> list[Path]:
    """List the directories that a load has set aside, oldest first."""
    return sorted(entry for entry in _entries(checkpoints_dir) if entry.name.endswith(_DAMAGED))


def list_partial(checkpoints_dir: Path) -> list[Path]:
    """List the directories that were left unfinished, or are being written."""
    return sorted(entry for entry in _entries(checkpoints_dir) if entry.name.endswith(_PARTIAL))


def _entries(checkpoints_dir: Path) -> Iterable[Path]:
    return checkpoints_dir.iterdir() if checkpoints_dir.is_dir() else ()


def _list_dirs(checkpoints_dir: Path) -> list[tuple[int, bool]]:
    steps = ((step_of(entry.name), entry) for entry in _entries(checkpoints_dir))
    return sorted((step, (entry / MARK_NAME).is_file()) for step, entry in steps if step is not None)


def step_of(name: str) -> int | None:
    """Read the step out of the name of a complete checkpoint; None: it is no such name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def newest(checkpoints_dir: Path) -> Path | None:
    """Find the newest checkpoint with a sound index and files of the right size; None: there is none.

    What the bytes of its parts are worth is found at a load.
    """
    for step in reversed(list_steps(checkpoints_dir)):
        if is_whole(step_dir(checkpoints_dir, step=step)):
            return step_dir(checkpoints_dir, step=step)
    return None


def is_whole(checkpoint_dir: Path) -> bool:
    """Whether marker, index and the sizes of all parts agree.

    Raises:
        CheckpointError: it has a format that this toolkit does not read.
    """
    try:
        return not check_sizes(checkpoint_dir, read_index(checkpoint_dir).parts)
    except DamagedError:
        return False


def doomed_steps(steps: Sequence[int], *, keep: int, keep_every: int | None) -> list[int]:
    """List the steps to delete: all but the newest `keep` and the multiples of `keep_every`."""
    assert keep >= 1, f"keep={keep} would delete the last checkpoint"
    older = sorted(steps)[:-keep]
    return [step for step in older if not keep_every or step % keep_every]


def find_doomed(checkpoints_dir: Path, *, keep: int, keep_every: int | None) -> list[int]:
    """List the steps of the checkpoints to delete; those that are not whole do not count as kept."""
    whole: list[int] = []
    steps = list_steps(checkpoints_dir)
    for step in reversed(steps):
        if len(whole) < keep and is_whole(step_dir(checkpoints_dir, step=step)):
            whole.append(step)
    if not whole:
        return []
    return doomed_steps([step for step in steps if step < whole[-1]] + whole, keep=len(whole), keep_every=keep_every)


def delete(checkpoint_dir: Path) -> None:
    """Delete a checkpoint, its marker first, so that a half-deleted one is never trusted."""
    (checkpoint_dir / MARK_NAME).unlink(missing_ok=True)
    shutil.rmtree(checkpoint_dir)


def set_aside(checkpoint_dir: Path) -> Path:
    """Rename a damaged checkpoint, so that nothing counts on it any more."""
    aside = checkpoint_dir.with_name(checkpoint_dir.name + _DAMAGED)
    if aside.exists():  # the same step was found damaged before
        shutil.rmtree(aside)
    return checkpoint_dir.rename(aside)


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, cut off or changed; an older checkpoint may be whole."""


def render_index(index: Index) -> bytes:
    """Write an index as text: a line for each part."""
    fields = asdict(index)
    parts = ",\n  ".join(json.dumps(part) for part in fields.pop("parts"))
    return f'{json.dumps(fields, indent=1)[:-2]},\n "parts": [\n  {parts}\n ]\n}}\n'.encode()


def render_mark(index_data: bytes) -> bytes:
    """Give what the marker holds: the checksum of the index."""
    return f"{xxhash.xxh3_128_hexdigest(index_data)}\n".encode()


def write_index(directory: Path, index: Index) -> None:
    """Write the index, then the marker."""
    data = render_index(index)
    (directory / INDEX_NAME).write_bytes(data)
    (directory / MARK_NAME).write_bytes(render_mark(data))


def read_index(checkpoint_dir: Path) -> Index:
    """Read the index of a complete checkpoint.

    Raises:
        DamagedError: no marker, no index, or one that is not what was written.
        CheckpointError: it has a format that this toolkit does not read.
        OSError: the file system does not answer.
    """
    found = {}
    for name in (MARK_NAME, INDEX_NAME):
        try:
            found[name] = (checkpoint_dir / name).read_bytes()
        except FileNotFoundError as error:
            raise DamagedError(
                f"{checkpoint_dir} is no complete checkpoint\n  it has no file {name}\n"
                "  use another one; `toolkit status RUN` lists those that are complete"
            ) from error
        except OSError as error:
            if error.errno in UNREACHED:
                raise
            raise DamagedError(f"{checkpoint_dir / name} cannot be read: {error}") from error
    return parse_index(found[INDEX_NAME], mark=found[MARK_NAME], origin=str(checkpoint_dir / INDEX_NAME))


def parse_index(data: bytes, *, mark: bytes, origin: str) -> Index:
    """Understand an index, given the marker beside it.

    Raises:
        DamagedError: it is not what was written; the text names `origin`.
        CheckpointError: it has a format that this toolkit does not read.
    """
    is_sound = mark == render_mark(data)
    try:
        fields = json.loads(data)
        version = fields.get("format_version") if isinstance(fields, dict) else None
        # A flipped bit may fake a version: it counts where the marker vouches for it, or was empty as in format 1.
        if version != FORMAT_VERSION and (is_sound or (mark == b"" and version == 1)):
            raise CheckpointError(
                f"{origin} has format {version}\n  this toolkit reads format {FORMAT_VERSION}\n"
                "  go on with the toolkit that wrote it, or begin anew under another run.name"
            )
        if not is_sound:
            raise DamagedError(f"{origin} does not have the checksum in {MARK_NAME}: one of the two is damaged")
        index: Index = build(Index, fields)
        _check_parts(index.parts)
        return index
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{origin} is damaged: {error}") from error


def parse_part(text: str) -> Part:
    """Understand a part that `render_part` wrote."""
    part: Part = build(Part, json.loads(text))
    return part


def render_part(part: Part) -> str:
    """Write a part as JSON."""
    return json.dumps(asdict(part))


def _check_parts(parts: Sequence[Part]) -> None:
    """Compare what an index says of its parts with itself; ValueError says what cannot be."""
    for part in parts:
        if not is_inner(part.path) or "/" in part.path:
            raise ValueError(f"a part is {part.path!r}, and must be a file in the directory of the checkpoint")
        for one in part.slices:
            if not one.start <= one.stop <= math.prod(one.shape):
                raise ValueError(f"{part.path} has elements {one.start} to {one.stop} of {one.name}, of {one.shape}")


def check_sizes(checkpoint_dir: Path, parts: Sequence[Part]) -> list[str]:
    """Compare the size of each file with the index; give a sentence for each that differs."""
    problems = []
    for part in parts:
        path = checkpoint_dir / part.path
        try:
            num_bytes = path.stat().st_size
        except OSError as error:
            problems.append(f"{path} is missing" if isinstance(error, FileNotFoundError) else f"{path}: {error}")
            continue
        if path.is_symlink():
            problems.append(f"{path} is a link, and a checkpoint holds its parts itself")
        elif num_bytes != part.num_bytes:
            problems.append(f"{path} has {num_bytes} bytes instead of {part.num_bytes}")
    return problems


def find_gaps(parts: Sequence[Part]) -> list[str]:
    """Look for elements that no part holds; give a sentence for each parameter with some."""
    by_name: dict[str, list[Slice]] = {}
    for part in parts:
        for one in part.slices:
            by_name.setdefault(one.name, []).append(one)
    gaps = []
    for name, slices in by_name.items():
        reached = 0
        for one in sorted(slices, key=lambda one: one.start):
            if one.start <= reached:
                reached = max(reached, one.stop)
        if reached < math.prod(slices[0].shape):
            gaps.append(f"nobody wrote the elements of {name} from {reached} on")
    return gaps


def bytes_needed(num_parameters: int) -> int:
    """Reckon the size of a checkpoint: three fp32 tensors a parameter."""
    return num_parameters * 4 * len(KINDS)
