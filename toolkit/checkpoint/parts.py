"""One file of slices: written with its checksum as it goes, compared later; no torch.

The format is safetensors': 8 bytes of length, a JSON header with the place of each tensor, then the bytes.
Source: safetensors, README.md, section Format.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import xxhash

from toolkit import storage
from toolkit.checkpoint.layout import KINDS, UNREACHED, Part, Slice
from toolkit.errors import StorageError

_CHUNK_BYTES = 4 << 20
_ALIGNMENT = 64  # of the first tensor, so that mapped ones can be used in place


class DiscardedError(Exception):
    """The writing was given up on request."""


def tensor_bytes(slices: Sequence[Slice]) -> int:
    """Reckon the bytes of the tensors of some slices: all kinds, fp32."""
    return sum(one.num_elements for one in slices) * 4 * len(KINDS)


def places(slices: Sequence[Slice]) -> Iterator[tuple[str, Slice, int]]:
    """Say where each tensor lies behind the header: (kind, slice, first element)."""
    start = 0
    for one in slices:
        for kind in KINDS:
            yield kind, one, start
            start += one.num_elements


def render_header(slices: Sequence[Slice]) -> bytes:
    """Write the head of a file that holds the tensors of some slices."""
    tensors = {
        f"{kind}/{one.name}": {
            "dtype": "F32",
            "shape": [one.num_elements],
            "data_offsets": [4 * start, 4 * (start + one.num_elements)],
        }
        for kind, one, start in places(slices)
    }
    text = json.dumps(tensors).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_part(path: Path, data: memoryview, *, slices: Sequence[Slice], is_discarded: Callable[[], bool]) -> Part:
    """Write a file to the disk, to its last byte.

    Args:
        path: file to write; its directory exists.
        data: bytes of the tensors, in the order of `places`.
        slices: what they are.
        is_discarded: asked before each piece.

    Raises:
        OSError: the disk is full, or gone.
        DiscardedError: `is_discarded` has said so.
    """
    assert data.nbytes == tensor_bytes(slices), f"{data.nbytes} bytes for slices of {tensor_bytes(slices)}"
    digest, header = xxhash.xxh3_128(), render_header(slices)
    with path.open("wb", buffering=0) as file:
        for block in (memoryview(header), data):
            for start in range(0, block.nbytes, _CHUNK_BYTES):
                if is_discarded():
                    raise DiscardedError
                piece = block[start : start + _CHUNK_BYTES]
                digest.update(piece)
                _write_all(file.fileno(), piece)
        os.fsync(file.fileno())
    return Part(path=path.name, num_bytes=len(header) + data.nbytes, xxh3=digest.hexdigest(), slices=tuple(slices))


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece.nbytes:
        piece = piece[os.write(descriptor, piece) :]  # a nearly full disk takes a part of it


def find_damage(checkpoint_dir: Path, part: Part) -> str | None:
    """Compare a file with the index, byte for byte; give a sentence where it differs.

    Raises:
        OSError: the file system does not answer.
    """
    path = checkpoint_dir / part.path
    try:
        num_bytes = path.stat().st_size
        if num_bytes != part.num_bytes:
            return f"{path} has {num_bytes} bytes instead of {part.num_bytes}"
        if storage.checksum(str(path)) != part.xxh3:
            return f"{path} does not have the checksum it was written with"
    except FileNotFoundError:
        return f"{path} is missing"
    except (OSError, StorageError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if isinstance(cause, OSError) and cause.errno in UNREACHED:
            raise cause from None
        return f"{path} cannot be read: {error}"
    return None
