"""One file of tokens: an Arrow stream that `datasets` opens and that is read in place as a flat array."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toolkit import storage
from toolkit.data.manifest import ShardEntry
from toolkit.errors import DataError

Tokens = npt.NDArray[np.unsignedinteger]

MAX_TOKENS = 2**31 - 1  # offsets of an Arrow list are int32
_COLUMN = "input_ids"


def write_shard(path: Path, documents: Iterable[npt.ArrayLike], *, dtype: str, name: str) -> ShardEntry:
    """Write documents as the rows of one record batch, fsynced, then renamed into place.

    Args:
        path: the file.
        documents: token ids, one array a document.
        dtype: `uint16` or `uint32`.
        name: the path that the manifest gives it.

    Raises:
        DataError: an id does not fit the dtype.
    """
    arrays = [np.asarray(document) for document in documents]
    lengths = np.fromiter((len(array) for array in arrays), dtype=np.int64, count=len(arrays))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    assert offsets[-1] <= MAX_TOKENS, f"{offsets[-1]} tokens are too many for one shard"
    flat = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
    if len(flat) and (flat.min() < 0 or flat.max() > np.iinfo(dtype).max):
        raise DataError(f"{path}: token id {flat.max()} does not fit {dtype}\n  use a tokenizer with fewer ids")
    column = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(flat.astype(dtype)))
    batch = pa.record_batch([column], names=[_COLUMN])
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as file:
        with pa.ipc.new_stream(file, batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return ShardEntry(
        path=name,
        num_tokens=int(offsets[-1]),
        num_documents=len(arrays),
        num_bytes=path.stat().st_size,
        xxh3=storage.checksum(str(path)),
    )


class Shard:
    """A mapped shard; nothing is copied until a slice is taken."""

    def __init__(self, path: Path) -> None:
        try:
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
                batches = list(reader)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} is no token shard: {str(error).splitlines()[0]}") from error
        if len(batches) != 1 or batches[0].schema.names != [_COLUMN]:
            raise DataError(f"{path} is no token shard\n  it must hold one record batch with the column {_COLUMN}")
        column = batches[0].column(0)
        self.tokens: Tokens = column.values.to_numpy(zero_copy_only=True)
        """[num_tokens], uint16 or uint32."""
        self.offsets: npt.NDArray[np.int32] = column.offsets.to_numpy(zero_copy_only=True)
        """[num_documents + 1]: where documents begin."""


def verify_shard(path: Path, entry: ShardEntry, *, vocab_size: int) -> list[str]:
    """Check everything the manifest says of a shard; give a sentence for each thing that is not so."""
    if not path.is_file():
        return [f"{path} is missing"]
    if storage.checksum(str(path)) != entry.xxh3:
        return [f"{path} does not have the checksum of the manifest"]
    shard = Shard(path)
    problems = []
    if len(shard.tokens) != entry.num_tokens or len(shard.offsets) != entry.num_documents + 1:
        problems.append(f"{path} does not have {entry.num_tokens} tokens in {entry.num_documents} documents")
    if len(shard.tokens) and int(shard.tokens.max()) >= vocab_size:
        problems.append(f"{path} has token id {shard.tokens.max()}, the vocabulary has {vocab_size}")
    return problems
