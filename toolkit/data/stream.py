"""All shards of a split as one stream of tokens, cut into samples at training time."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import storage
from toolkit.data.manifest import ShardEntry
from toolkit.data.order import Indices
from toolkit.data.shard import Shard, Tokens
from toolkit.errors import DataError

Locate = Callable[[ShardEntry], Path]
"""Gives the local file of a shard."""

MAX_MAPPED = 32_768
"""Shards that a process keeps mapped: half of what Linux allows (vm.max_map_count is 65,530). A mapped shard
holds no open file."""


def count_samples(num_tokens: int, *, seq_len: int) -> int:
    """Count the samples of a stream: each predicts `seq_len` tokens and reads the one before them."""
    return max(0, num_tokens - 1) // seq_len


def locate_in(dataset_dir: str) -> Locate:
    """Find shards in a directory of this machine.

    Raises:
        DataError: the dataset is elsewhere.
    """
    if not storage.is_local(dataset_dir):
        raise DataError(f"{dataset_dir}: shards are read from local or mounted paths\n  copy the dataset first")
    directory = storage.local_path(dataset_dir)
    return lambda entry: directory / entry.path


class TokenStream:
    """Shards end to end in manifest order; a sample may cross from one to the next.

    So the identity of a sample does not depend on the size of shards. A shard is mapped when it is first read,
    and unmapped when it was not read for longer than `max_mapped` others.
    """

    def __init__(self, shards: Sequence[ShardEntry], locate: Locate, *, dtype: str, max_mapped: int) -> None:
        self.dtype = stored = np.dtype(dtype)
        self._ends = np.cumsum([shard.num_tokens for shard in shards], dtype=np.int64)
        self._begins = self._ends - [shard.num_tokens for shard in shards]
        self._shards = entries = tuple(shards)
        self._map = functools.lru_cache(max_mapped)(lambda number: _map_shard(entries[number], locate, stored))

    def shards_from(self, index: int, *, seq_len: int) -> tuple[ShardEntry, ...]:
        """List all shards in the order of the corpus, from the one where a sample begins, the first ones last."""
        number = int(np.searchsorted(self._ends, index * seq_len, side="right"))
        return self._shards[number:] + self._shards[:number]

    def shards_of(self, indices: Indices, *, seq_len: int) -> tuple[ShardEntry, ...]:
        """List all shards in the order in which samples begin in them, then those where none of these does."""
        numbers = np.searchsorted(self._ends, indices * seq_len, side="right").tolist()
        return tuple(self._shards[number] for number in dict.fromkeys([*numbers, *range(len(self._shards))]))

    @property
    def num_tokens(self) -> int:
        """Count the tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, count: int) -> Tokens:
        """Read tokens [start, start + count): a view where one shard holds them all."""
        assert 0 <= start <= start + count <= self.num_tokens, f"[{start}, +{count}) of {self.num_tokens}"
        number = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        while count:
            first = start - int(self._begins[number])
            piece = self._map(number)[first : first + count]
            pieces.append(piece)
            start, count, number = start + len(piece), count - len(piece), number + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def samples(self, indices: Indices, *, seq_len: int) -> Iterator[Tokens]:
        """Read samples, `seq_len + 1` tokens each: the last is the first of the next one.

        Returns:
            Views of the mapped shard; a copy only of a sample that crosses into another shard.
        """
        starts = indices * seq_len
        numbers = np.searchsorted(self._ends, starts, side="right")
        firsts = starts - self._begins[numbers]
        for start, number, first in zip(starts.tolist(), numbers.tolist(), firsts.tolist(), strict=True):
            view = self._map(number)[first : first + seq_len + 1]
            yield view if len(view) == seq_len + 1 else self.read(start, seq_len + 1)


_CHANGED = "a dataset must not change while runs read it\n  restore the file, or prepare the dataset again"


def _map_shard(entry: ShardEntry, locate: Locate, dtype: np.dtype[Any]) -> Tokens:
    path = locate(entry)
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}\n  {_CHANGED}") from error
    # Reading a mapped file past its end kills the process (SIGBUS) without a word.
    if num_bytes != entry.num_bytes:
        raise DataError(f"{path} has {num_bytes} bytes instead of {entry.num_bytes}\n  {_CHANGED}")
    tokens = Shard(path).tokens
    if (len(tokens), tokens.dtype) != (entry.num_tokens, dtype):
        what = f"{len(tokens)} tokens of {tokens.dtype} instead of {entry.num_tokens} of {dtype}"
        raise DataError(f"{path} has {what}\n  {_CHANGED}")
    return tokens
