"""All shards of a split as one stream of tokens, cut into samples at training time."""

import functools
from collections.abc import Sequence

import numpy as np

from toolkit import storage
from toolkit.data.manifest import ShardEntry
from toolkit.data.shard import Shard, Tokens
from toolkit.errors import DataError


def count_samples(num_tokens: int, *, seq_len: int) -> int:
    """Count the samples of a stream: each predicts `seq_len` tokens and reads the one before them."""
    return max(0, num_tokens - 1) // seq_len


class TokenStream:
    """Shards end to end in manifest order; a sample may cross from one to the next.

    So the identity of a sample does not depend on the size of shards.
    """

    def __init__(self, dataset_dir: str, shards: Sequence[ShardEntry]) -> None:
        if not storage.is_local(dataset_dir):
            raise DataError(f"{dataset_dir}: shards are read from local or mounted paths\n  copy the dataset first")
        self._dir = storage.local_path(dataset_dir)
        self._shards = tuple(shards)
        self._ends = np.cumsum([shard.num_tokens for shard in shards], dtype=np.int64)
        self._open = functools.lru_cache(maxsize=None)(lambda number: Shard(self._dir / self._shards[number].path))

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
            first = int(self._ends[number]) - self._shards[number].num_tokens
            piece = self._open(number).tokens[start - first : start - first + count]
            pieces.append(piece)
            start, count, number = start + len(piece), count - len(piece), number + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def sample(self, index: int, *, seq_len: int) -> Tokens:
        """Read the tokens of a sample, `seq_len + 1` of them: its last is the next one's first."""
        return self.read(index * seq_len, seq_len + 1)
