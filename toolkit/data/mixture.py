"""Several token datasets read as one: which sample stands at which position, and what must fit together."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from toolkit.config.schema import DataSection
from toolkit.data.manifest import Manifest, read_manifest
from toolkit.data.order import Indices, draw_samples
from toolkit.errors import DataError

_UNIT_BITS = 32
_UNIT = 1 << _UNIT_BITS  # a share of 1
_PIECE = 4096  # positions that are worked out at a time: for 16 of them numpy takes as long as for 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One dataset of a mixture; a run that reads a single dataset has one."""

    name: str
    """Short, and different from the other members'."""
    dataset_dir: str
    manifest: Manifest
    share: float
    """Part of the samples that come from it; the shares of a mixture sum to 1."""


def open_members(weights: Mapping[str, float]) -> tuple[Member, ...]:
    """Read the manifests of datasets that are to be read together.

    Args:
        weights: path or URL of each, with its weight: any positive number.

    Raises:
        DataError: one cannot be read, or their tokenizers differ.
    """
    total = sum(weights.values())
    names = _short_names(list(weights))
    members = tuple(
        Member(name=name, dataset_dir=path, manifest=read_manifest(path), share=weight / total)
        for name, (path, weight) in zip(names, weights.items(), strict=True)
    )
    first = members[0]
    for other in members[1:]:
        ours, theirs = first.manifest.tokenizer, other.manifest.tokenizer
        if ours.sha256 != theirs.sha256:
            raise DataError(
                f"{first.dataset_dir} has tokenizer {ours.name} ({ours.sha256[:16]}), "
                f"{other.dataset_dir} has {theirs.name} ({theirs.sha256[:16]})\n"
                "  the datasets of a mixture are read by one model: the same id must mean the same token\n"
                "  prepare one of them again with the other's tokenizer.json"
            )
    return members


def identify(members: Sequence[Member], data: DataSection) -> str:
    """Say which tokens are read in which order: with equal texts, a step reads the same samples."""
    parts = [f"{member.share:.12g} x {member.manifest.fingerprint}" for member in members]
    datasets = " + ".join(parts) if len(parts) > 1 else members[0].manifest.fingerprint
    return f"{datasets} seq_len={data.seq_len}{'' if data.shuffle else ' in the order of the corpus'}"


def mean_unigram_loss(members: Sequence[Member]) -> float | None:
    """Weight the unigram losses by the shares, as the validation loss of a mixture is; None: one is not known."""
    known = [member.share * loss for member in members if (loss := member.manifest.unigram_loss) is not None]
    return sum(known) if len(known) == len(members) else None


def find_samples(
    first: int, count: int, *, num_samples: tuple[int, ...], shares: tuple[float, ...], seed: int, shuffle: bool
) -> tuple[Indices, Indices]:
    """Find the samples at positions [first, first + count) of a run: the same whoever asks, and for what step.

    Args:
        first: counted from the run's first sample.
        count: positions.
        num_samples: samples of each dataset.
        shares: of each dataset, with sum 1.
        seed: of the run.
        shuffle: else each dataset is read in the order of its corpus.

    Returns:
        The dataset of each, and its number there: int64 [count].
    """
    numbers = range(first // _PIECE, (first + count - 1) // _PIECE + 1)
    pieces = [_find_piece(number, num_samples, shares, seed, shuffle) for number in numbers]
    found = np.concatenate(pieces, axis=1)[:, first % _PIECE :][:, :count]
    return found[0], found[1]


@functools.lru_cache(maxsize=16)
def _find_piece(
    number: int, num_samples: tuple[int, ...], shares: tuple[float, ...], seed: int, shuffle: bool
) -> Indices:
    members, ordinals = deal(np.arange(number * _PIECE, (number + 1) * _PIECE), shares=shares)
    samples = np.empty_like(ordinals)
    for member, size in enumerate(num_samples):
        mine = members == member
        samples[mine] = draw_samples(ordinals[mine], num_samples=size, seed=seed, part=member, shuffle=shuffle)
    return np.stack([members, samples])


def deal(positions: Indices, *, shares: Sequence[float]) -> tuple[Indices, Indices]:
    """Give each position of the mixture to a dataset, in exact proportions all along the way.

    Of the first n positions dataset d (counted from 0) gets n * share to within (d + 1) / 2, at every n: the first
    takes position n when round(n * share) steps up there, the others deal out the rest in the same way.
    Shares are held as multiples of 2^-32, so at n = 10^9 this adds less than one position.

    Returns:
        The dataset of each position, and how many positions before it belong to the same dataset.
    """
    members, ordinals = np.zeros_like(positions), positions.copy()
    for member, cut in enumerate(_cuts(shares)):
        rest = np.flatnonzero(members == member)
        here = ordinals[rest]
        before, after = _scale(here, cut), _scale(here + 1, cut)
        is_mine = after > before
        members[rest[~is_mine]] = member + 1
        ordinals[rest] = np.where(is_mine, before, here - before)
    return members, ordinals


def count_dealt(num_positions: int, *, shares: Sequence[float]) -> list[int]:
    """Count what each dataset gets of the first positions."""
    counts, rest = [], num_positions
    for cut in _cuts(shares):
        counts.append((rest * cut + _UNIT // 2) // _UNIT)
        rest -= counts[-1]
    return [*counts, rest]


def _cuts(shares: Sequence[float]) -> list[int]:
    """Give what each dataset but the last takes of what those before it have left, in units of 2^-32."""
    left = np.cumsum(shares[::-1])[::-1]
    # Never 0 nor all: a weight of one in a thousand million is still read now and then.
    return [min(_UNIT - 1, max(1, round(share / rest * _UNIT))) for share, rest in zip(shares, left, strict=True)][:-1]


def _scale(numbers: Indices, cut: int) -> Indices:
    """Multiply by cut / 2^32 and round, exactly, in 64 bits."""
    high, low = numbers >> _UNIT_BITS, (numbers & (_UNIT - 1)).astype(np.uint64)
    rounded = (low * np.uint64(cut) + np.uint64(_UNIT // 2)) >> np.uint64(_UNIT_BITS)
    scaled: Indices = high * cut + rounded.astype(np.int64)
    return scaled


def _short_names(paths: Sequence[str]) -> list[str]:
    """Take the last parts of paths, as many as it needs to tell them apart."""
    parts = [PurePosixPath(path).parts for path in paths]
    for count in range(1, max(map(len, parts))):
        names = ["-".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)
