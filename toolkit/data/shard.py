"""One file of tokens: an Arrow stream that `datasets` opens and that is read in place as a flat array."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from toolkit import storage
from toolkit.data.manifest import ShardEntry
from toolkit.errors import DataError

Tokens = npt.NDArray[np.unsignedinteger]

MAX_TOKENS = 2**31 - 1  # offsets of an Arrow list are int32
_COLUMN = "input_ids"


class _HashedFile(io.RawIOBase):
    """Counts and hashes what passes on its way to a file, so that nothing is read again for its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = xxhash.xxh3_128()
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.num_bytes += len(data)
        self._file.write(data)
        return len(data)


def write_tokens(url: str, tokens: Tokens, offsets: npt.NDArray[np.int64], *, name: str) -> ShardEntry:
    """Write documents as the rows of one record batch, beside and renamed into place.

    Args:
        url: the file.
        tokens: uint16 or uint32 [num_tokens]; written from where it is, not copied.
        offsets: [num_documents + 1], where documents begin; the first is 0, the last is num_tokens.
        name: the path that the manifest gives it.
    """
    assert len(tokens) == offsets[-1] <= MAX_TOKENS, f"{len(tokens)} tokens, offsets up to {offsets[-1]}"
    column = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(tokens))
    batch = pa.record_batch([column], names=[_COLUMN])
    with storage.write_beside(url) as file:
        hashed = _HashedFile(file)
        with pa.ipc.new_stream(hashed, batch.schema) as writer:
            writer.write_batch(batch)
    return ShardEntry(
        path=name,
        num_tokens=len(tokens),
        num_documents=len(offsets) - 1,
        num_bytes=hashed.num_bytes,
        xxh3=hashed.digest.hexdigest(),
    )


def write_shard(path: Path, documents: Sequence[npt.ArrayLike], *, dtype: str, name: str) -> ShardEntry:
    """Write a list of documents, each an array of ids; see `write_tokens`."""
    offsets = np.cumsum([0, *(np.size(document) for document in documents)], dtype=np.int64)
    flat = np.concatenate(documents) if documents else np.empty(0)
    return write_tokens(str(path), flat.astype(dtype), offsets, name=name)


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
        self.tokens: Tokens = _view(column.values)
        """[num_tokens], uint16 or uint32."""
        self.offsets: npt.NDArray[np.int32] = _view(column.offsets)
        """[num_documents + 1]: where documents begin."""


def _view(values: Any) -> npt.NDArray[Any]:
    """Look at an Arrow array in place; its `to_numpy` imports pandas, 0.4 s of a start (pyarrow 26.0, measured)."""
    view: npt.NDArray[Any] = np.from_dlpack(values)
    return view


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
