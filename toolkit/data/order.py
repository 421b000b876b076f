"""Which sample at which step: a pure function, in constant time and memory at any size."""

import functools

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_ROUNDS = 4
_MASK64 = (1 << 64) - 1


def draw_samples(ordinals: Indices, *, num_samples: int, seed: int, part: int, shuffle: bool) -> Indices:
    """Give the samples of a dataset that is read again and again, from how many of it were read before.

    Ordinal i falls in epoch i // num_samples; each epoch is a permutation of its own, so every sample is
    seen once an epoch.

    Args:
        ordinals: int64 [any], from 0 on without an end.
        num_samples: samples of the dataset.
        seed: of the run.
        part: number of the dataset among those that are read together: equal ones get orders of their own.
        shuffle: else every epoch is in the order of the corpus.
    """
    epochs, places = np.divmod(ordinals, num_samples)
    if not shuffle:
        return places
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = permute(places[chosen], num_samples=num_samples, seed=seed, epoch=int(epoch), part=part)
    return indices


def choose_replicas(members: Indices, samples: Indices, *, replicas: int) -> Indices:
    """Deal the samples of a step to replicas by their hash: equal counts, and mostly the same replica each epoch.

    A sample goes to the replica that its hash names while that one has room, in the order of positions; what
    is left over fills the others. With m samples a replica about 0.4 / sqrt(m) of them are left over (the mean
    excess of a Poisson count), whatever the number of replicas.

    Args:
        members: int64 [samples_per_step], the dataset of each.
        samples: int64 [samples_per_step], its number there.
        replicas: divides samples_per_step.

    Returns:
        int64 [samples_per_step].
    """
    room = len(samples) // replicas
    hashes = _mix(samples.astype(np.uint64) + (members.astype(np.uint64) << np.uint64(48)))
    wanted = ((hashes >> np.uint64(32)) * np.uint64(replicas) >> np.uint64(32)).astype(np.int64)
    by_wish = np.argsort(wanted, kind="stable")
    counts = np.bincount(wanted, minlength=replicas)
    turns = np.empty_like(wanted)
    turns[by_wish] = np.arange(len(wanted)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_left = turns >= room
    chosen: Indices = wanted
    chosen[is_left] = np.repeat(np.arange(replicas), room - np.minimum(counts, room))
    return chosen


def permute(places: Indices, *, num_samples: int, seed: int, epoch: int, part: int) -> Indices:
    """Map places to samples by a bijection of range(num_samples).

    A Feistel network over the next even number of bits; what falls outside walks on until it is inside.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"; the round function mixes as
    splitmix64 does (Steele, Lea and Flood 2014).
    """
    half_bits = max(1, (max(1, num_samples - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch, part)
    values = places.astype(np.uint64)
    values = _feistel(values, keys, half_bits=half_bits)
    outside = np.flatnonzero(values >= num_samples)
    while len(outside):
        values[outside] = _feistel(values[outside], keys, half_bits=half_bits)
        outside = outside[values[outside] >= num_samples]
    return values.astype(np.int64)


@functools.lru_cache(maxsize=256)  # making a Generator takes longer than permuting a step
def _round_keys(seed: int, epoch: int, part: int) -> npt.NDArray[np.uint64]:
    return np.random.default_rng([seed, epoch, part]).integers(0, _MASK64, size=_ROUNDS, dtype=np.uint64, endpoint=True)


def _feistel(values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], *, half_bits: int) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    joined: npt.NDArray[np.uint64] = (left << shift) | right
    return joined


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed: npt.NDArray[np.uint64] = values * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    return mixed
