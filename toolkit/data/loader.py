"""Batches of one replica, straight out of mapped shards."""

import numpy as np
import torch
from torch import Tensor

from toolkit.data.order import sample_indices
from toolkit.data.stream import TokenStream, count_samples
from toolkit.errors import DataError
from toolkit.topology import BatchShape


class StepLoader:
    """Gives the micro-batches of any step; it has no state, so a resume needs only the step's number."""

    def __init__(self, stream: TokenStream, *, seq_len: int, batch: BatchShape, seed: int, shuffle: bool) -> None:
        self.num_samples = count_samples(stream.num_tokens, seq_len=seq_len)
        if self.num_samples == 0:
            raise DataError(f"{stream.num_tokens} tokens hold no sample of data.seq_len={seq_len} + 1 tokens")
        self._stream = stream
        self._seq_len = seq_len
        self._batch = batch
        self._seed = seed
        self._shuffle = shuffle

    def micro_batches(self, step: int, *, replica: int) -> list[tuple[Tensor, Tensor]]:
        """Read a step's share of a replica.

        Returns:
            For each micro-batch, tokens and labels, int64 [micro_batch, seq_len].
        """
        indices = sample_indices(
            step,
            num_samples=self.num_samples,
            samples_per_step=self._batch.samples_per_step,
            seed=self._seed,
            shuffle=self._shuffle,
        )
        batches = []
        for number in range(self._batch.num_micro_batches):
            chosen = indices[list(self._batch.positions(replica=replica, micro_index=number))]
            rows = np.stack([self._stream.sample(int(i), seq_len=self._seq_len) for i in chosen])
            tokens = torch.from_numpy(rows.astype(np.int64))
            batches.append((tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
        return batches
