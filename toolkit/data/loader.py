"""Batches of one replica, straight out of mapped shards, the next step's while this one is computed."""

import copy
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toolkit.data.manifest import ShardEntry
from toolkit.data.mixture import Member, count_dealt, find_samples
from toolkit.data.order import Indices, choose_replicas
from toolkit.data.skips import NOTHING_SKIPPED, Skips
from toolkit.data.stream import Locate, TokenStream, count_samples
from toolkit.errors import DataError
from toolkit.topology import BatchShape

MicroBatch: TypeAlias = tuple[Tensor | tuple[Tensor, Tensor], Tensor]
"""Tokens and labels, each int64 [micro_batch, seq_len]; where documents are kept apart, the tokens come with the number
of each position's document in its sample, int32, and a label that is not learned is negative."""

_LOOK_AHEAD = 1 << 17  # samples: in a random order they touch 10,000 shards with near certainty
_NOT_LEARNED = -100  # the label that torch's cross_entropy passes over


def open_streams(
    members: Sequence[Member], split: str, *, seq_len: int, locate_in: Callable[[str], Locate], max_mapped: int
) -> list[TokenStream]:
    """Open the same split of each dataset of a mixture; no shard is touched yet.

    Args:
        members: the datasets.
        split: which part of each.
        seq_len: tokens a sample.
        locate_in: finds the shards of a dataset on this node.
        max_mapped: shards that may stay mapped, of all datasets together.

    Raises:
        DataError: one of them holds no sample.
    """
    streams = []
    for member in members:
        shards, locate = member.manifest.shards(split), locate_in(member.dataset_dir)
        stream = TokenStream(shards, locate, dtype=member.manifest.dtype, max_mapped=max(1, max_mapped // len(members)))
        if count_samples(stream.num_tokens, seq_len=seq_len) < 1:
            raise DataError(
                f"the {split} split of {member.dataset_dir} has {stream.num_tokens} tokens\n"
                f"  a sample takes data.seq_len={seq_len} + 1\n  use more text, or a shorter data.seq_len"
            )
        streams.append(stream)
    return streams


class StepLoader:
    """Gives the micro-batches of any step; it has no state, so a resume needs only the step's number."""

    def __init__(
        self,
        streams: Sequence[TokenStream],
        *,
        shares: Sequence[float],
        seq_len: int,
        batch: BatchShape,
        seed: int,
        shuffle: bool,
        replica_split: Literal["index", "hash"],
        document_end: int | None,
        pin_memory: bool,
    ) -> None:
        """Open; nothing is read yet.

        Args:
            streams: the datasets.
            shares: part of the samples that each gives.
            seq_len: tokens a sample.
            batch: how samples fall on replicas.
            seed: of the order.
            shuffle: else each dataset is read in the order of its corpus.
            replica_split: by position or by hash.
            document_end: the token that ends a document, to keep documents apart; None: a sample is one text.
            pin_memory: put batches where a GPU copies from without waiting.
        """
        self.num_samples = tuple(count_samples(stream.num_tokens, seq_len=seq_len) for stream in streams)
        assert all(self.num_samples), f"a stream holds no sample of {seq_len} tokens: {self.num_samples}"
        self._streams = tuple(streams)
        self._shares = tuple(shares)
        self._find = functools.partial(
            find_samples, num_samples=self.num_samples, shares=self._shares, seed=seed, shuffle=shuffle
        )
        self._dtype = np.result_type(*(stream.dtype for stream in streams))
        self._seq_len = seq_len
        self.batch = batch
        self._shuffle = shuffle
        self._replica_split = replica_split
        self._document_end = document_end
        self._pin_memory = pin_memory
        self._skips = NOTHING_SKIPPED

    def skipping(self, skips: Skips) -> "StepLoader":
        """Make a loader of the same run that leaves out positions."""
        other = copy.copy(self)
        other._skips = skips
        return other

    def micro_batches(self, step: int, *, replica: int) -> list[MicroBatch]:
        """Read a step's share of a replica."""
        members, samples = self.choose(step, replica=replica)
        # Rows are gathered as they are stored and widened all at once: half the time of widening each (measured).
        rows = np.empty((len(samples), self._seq_len + 1), dtype=self._dtype)
        for member, stream in enumerate(self._streams):
            places = np.flatnonzero(members == member)
            views = stream.samples(samples[places], seq_len=self._seq_len)
            for place, view in zip(places.tolist(), views, strict=True):
                rows[place] = view
        tokens, labels = self._copy(rows[:, :-1], torch.int64), self._copy(rows[:, 1:], torch.int64)
        size = self.batch.micro_batch
        slices = [slice(row, row + size) for row in range(0, len(samples), size)]
        if self._document_end is None:
            return [(tokens[part], labels[part]) for part in slices]
        is_end = rows[:, :-1] == self._document_end
        labels.numpy()[is_end] = _NOT_LEARNED  # the next document's first token
        documents = self._copy(is_end.cumsum(axis=1) - is_end, torch.int32)
        return [((tokens[part], documents[part]), labels[part]) for part in slices]

    def choose(self, step: int, *, replica: int) -> tuple[Indices, Indices]:
        """Say what a replica reads of a step, micro-batch after micro-batch.

        Returns:
            The dataset of each sample, and its number there: int64 [samples_per_step / replicas].
        """
        batch = self.batch
        first = step * batch.samples_per_step
        if self._replica_split == "index":
            places = batch.positions(replica=replica, micro_index=0)
            return self._find_read(first + places.start, batch.samples_per_step // batch.replicas)
        members, samples = self._find_read(first, batch.samples_per_step)
        is_ours = choose_replicas(members, samples, replicas=batch.replicas) == replica
        return members[is_ours], samples[is_ours]

    def samples_at(self, first: int, stop: int) -> tuple[Indices, Indices]:
        """Say which samples stand at positions [first, stop), skipped or not: their datasets and numbers there."""
        return self._find(first, stop - first)

    def _find_read(self, first: int, count: int) -> tuple[Indices, Indices]:
        """Find the samples that are read as numbers [first, first + count) of what is not skipped."""
        found = [self._find(piece.start, len(piece)) for piece in self._skips.positions(first, count)]
        if len(found) == 1:
            return found[0]
        members, samples = zip(*found, strict=True)
        return np.concatenate(members), np.concatenate(samples)

    def count_epochs(self, num_steps: int) -> list[float]:
        """Tell how often a run of so many steps goes through each dataset."""
        counts = count_dealt(num_steps * self.batch.samples_per_step, shares=self._shares)
        return [count / num_samples for count, num_samples in zip(counts, self.num_samples, strict=True)]

    def shards_ahead(self, step: int) -> list[tuple[ShardEntry, ...]]:
        """List the shards of each dataset, those first that the steps from this one on need first: for a cache."""
        first = self._skips.position(step * self.batch.samples_per_step)
        members, samples = self._find(first, min(_LOOK_AHEAD, sum(self.num_samples)))
        ahead = []
        for member, stream in enumerate(self._streams):
            mine = samples[members == member]
            if self._shuffle:
                ahead.append(stream.shards_of(mine, seq_len=self._seq_len))
            else:
                ahead.append(stream.shards_from(int(mine[0]) if len(mine) else 0, seq_len=self._seq_len))
        return ahead

    def _copy(self, rows: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(rows.shape, dtype=dtype, pin_memory=self._pin_memory)
        tensor.numpy()[:] = rows
        return tensor


class PrefetchingLoader:
    """Reads the next step of a replica in one thread while the current one is computed.

    A thread, since a fork after CUDA or the HDFS client have started hangs. What it raises is raised when the
    step is asked for. Close it.
    """

    def __init__(self, loader: StepLoader, *, replica: int, device: torch.device) -> None:
        self._loader = loader
        self._replica = replica
        # A thread starts on GPU 0; pinning memory from there would open a context on another rank's GPU.
        prepare = (torch.cuda.set_device, (device,)) if device.type == "cuda" else (None, ())
        self._executor = ThreadPoolExecutor(1, "prefetch", *prepare)
        self._ahead: tuple[int, Future[list[MicroBatch]]] | None = None

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Read a step's share, and start reading the next step's."""
        ahead = self._ahead
        future = ahead[1] if ahead is not None and ahead[0] == step else self._submit(step)
        batches = future.result()
        self._ahead = (step + 1, self._submit(step + 1))
        return batches

    def skip(self, skips: Skips) -> None:
        """Leave out positions from now on; what was read ahead is dropped."""
        self._loader = self._loader.skipping(skips)
        self._ahead = None

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(cancel_futures=True)

    def _submit(self, step: int) -> "Future[list[MicroBatch]]":
        return self._executor.submit(self._loader.micro_batches, step, replica=self._replica)
