"""Which sample at which step: a pure function, in constant time and memory at any size."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_ROUNDS = 4
_MASK64 = (1 << 64) - 1


def sample_indices(step: int, *, num_samples: int, samples_per_step: int, seed: int, shuffle: bool) -> Indices:
    """List the samples of a step, in the order of their positions.

    Position p = step * samples_per_step + j falls in epoch p // num_samples; each epoch is a
    permutation of its own, so every sample is seen once an epoch.

    Returns:
        int64 [samples_per_step].
    """
    positions = np.arange(samples_per_step, dtype=np.int64) + step * samples_per_step
    epochs, places = np.divmod(positions, num_samples)
    if not shuffle:
        return places
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = permute(places[chosen], num_samples=num_samples, seed=seed, epoch=int(epoch))
    return indices


def permute(places: Indices, *, num_samples: int, seed: int, epoch: int) -> Indices:
    """Map places to samples by a bijection of range(num_samples).

    A Feistel network over the next even number of bits; what falls outside walks on until it is inside.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"; the round function mixes as
    splitmix64 does (Steele, Lea and Flood 2014).
    """
    half_bits = max(1, (max(1, num_samples - 1).bit_length() + 1) // 2)
    keys = np.random.default_rng([seed, epoch, 0]).integers(0, _MASK64, size=_ROUNDS, dtype=np.uint64, endpoint=True)
    values = places.astype(np.uint64)
    values = _feistel(values, keys, half_bits=half_bits)
    outside = np.flatnonzero(values >= num_samples)
    while len(outside):
        values[outside] = _feistel(values[outside], keys, half_bits=half_bits)
        outside = outside[values[outside] >= num_samples]
    return values.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], *, half_bits: int) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(29))) & mask)
    joined: npt.NDArray[np.uint64] = (left << shift) | right
    return joined
