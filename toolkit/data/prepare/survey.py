"""What is in a token dataset: lengths of documents, how many occur more than once, what some of them say."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from toolkit import storage
from toolkit.data.manifest import ShardEntry
from toolkit.data.prepare.tokenizer import load_tokenizer
from toolkit.data.shard import Shard
from toolkit.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Documents whose length is in [low, high) tokens, end-of-text token included."""

    low: int
    high: int
    num_documents: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """The beginning of a document."""

    shard: str
    document: int
    num_tokens: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What was found in the shards that were read."""

    num_shards: int
    num_documents: int
    num_tokens: int
    num_duplicates: int
    """Documents that are equal to an earlier one, token by token."""
    lengths: tuple[Lengths, ...]
    samples: tuple[Sampled, ...]


def survey_shards(
    dataset_dir: str,
    entries: Sequence[ShardEntry],
    *,
    num_samples: int,
    sample_tokens: int,
    rng: np.random.Generator,
) -> Survey:
    """Read shards and describe their documents.

    Args:
        dataset_dir: a local or mounted directory.
        entries: the shards to read.
        num_samples: documents to show, each equally likely.
        sample_tokens: tokens to show of each.
        rng: chooses them.
    """
    if not storage.is_local(dataset_dir):
        raise DataError(f"{dataset_dir}: shards are read from local or mounted paths\n  copy the dataset first")
    hashes, lengths = [], []
    for entry in entries:
        shard = Shard(storage.local_path(dataset_dir) / entry.path)
        lengths.append(np.diff(shard.offsets))
        documents = np.split(shard.tokens, shard.offsets[1:-1])
        hashes.append(np.fromiter((xxhash.xxh3_64_intdigest(ids.data) for ids in documents), dtype=np.uint64))
    all_lengths, all_hashes = np.concatenate(lengths), np.concatenate(hashes)
    chosen = np.sort(rng.choice(len(all_lengths), size=min(num_samples, len(all_lengths)), replace=False))
    return Survey(
        num_shards=len(entries),
        num_documents=len(all_lengths),
        num_tokens=int(all_lengths.sum()),
        num_duplicates=len(all_hashes) - len(np.unique(all_hashes)),
        lengths=count_lengths(all_lengths),
        samples=tuple(_decode(dataset_dir, entries, chosen, sample_tokens=sample_tokens)),
    )


def count_lengths(lengths: npt.NDArray[np.integer]) -> tuple[Lengths, ...]:
    """Count documents by the power of two below their length, from the shortest to the longest."""
    powers = np.frexp(np.maximum(lengths, 1))[1] - 1
    return tuple(
        Lengths(
            low=2 ** int(power),
            high=2 ** (int(power) + 1),
            num_documents=int((powers == power).sum()),
            num_tokens=int(lengths[powers == power].sum()),
        )
        for power in range(powers.min(), powers.max() + 1)
    )


def _decode(
    dataset_dir: str, entries: Sequence[ShardEntry], chosen: npt.NDArray[np.int64], *, sample_tokens: int
) -> list[Sampled]:
    tokenizer = load_tokenizer(dataset_dir)
    ends = np.cumsum([entry.num_documents for entry in entries])
    samples = []
    for number in chosen:
        which = int(np.searchsorted(ends, number, side="right"))
        entry = entries[which]
        document = int(number - (ends[which] - entry.num_documents))
        shard = Shard(storage.local_path(dataset_dir) / entry.path)
        first, last = shard.offsets[document : document + 2]
        ids = shard.tokens[first : min(last, first + sample_tokens)]
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        samples.append(Sampled(shard=entry.path, document=document, num_tokens=int(last - first), text=text))
    return samples
