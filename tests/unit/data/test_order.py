"""The order of samples, and how a step is dealt to replicas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.order import choose_replicas, draw_samples, permute


@given(st.integers(1, 5000), st.integers(0, 2**31), st.integers(0, 50), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int, part: int) -> None:
    places = np.arange(num_samples)
    assert sorted(permute(places, num_samples=num_samples, seed=seed, epoch=epoch, part=part)) == list(places)


def test_the_permutation_works_at_a_trillion_samples() -> None:
    num_samples = 10**12
    mapped = permute(np.arange(10_000), num_samples=num_samples, seed=1, epoch=0, part=0)
    assert len(set(mapped.tolist())) == 10_000
    assert mapped.min() >= 0
    assert mapped.max() < num_samples
    assert np.mean(mapped) == pytest.approx(num_samples / 2, rel=0.05)


@given(st.integers(1, 400), st.integers(0, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_sample_is_seen_once_an_epoch(num_samples: int, seed: int, shuffle: bool) -> None:
    seen = draw_samples(np.arange(3 * num_samples), num_samples=num_samples, seed=seed, part=0, shuffle=shuffle)
    for epoch in seen.reshape(3, num_samples):
        assert sorted(epoch) == list(range(num_samples))


def test_epochs_and_datasets_have_orders_of_their_own() -> None:
    def draw(part: int) -> list[list[int]]:
        drawn = draw_samples(np.arange(300), num_samples=100, seed=4, part=part, shuffle=True)
        return drawn.reshape(3, 100).tolist()  # type: ignore[no-any-return]

    orders = [tuple(order) for part in range(3) for order in draw(part)]
    assert len(set(orders)) == 9
    assert draw(1) == draw(1)


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 2**62), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_the_hash_gives_every_replica_the_same_number_of_samples(
    per_replica: int, replicas: int, first: int, num_members: int
) -> None:
    samples = first + np.arange(per_replica * replicas)
    chosen = choose_replicas(samples % num_members, samples, replicas=replicas)
    assert np.bincount(chosen, minlength=replicas).tolist() == [per_replica] * replicas


def test_the_hash_sends_most_samples_to_the_same_replica_in_each_epoch() -> None:
    num_samples, per_step, replicas = 8192, 512, 8
    homes = np.empty((2, num_samples), dtype=np.int64)
    for epoch in range(2):
        order = permute(np.arange(num_samples), num_samples=num_samples, seed=2, epoch=epoch, part=0)
        for samples in order.reshape(-1, per_step):
            homes[epoch, samples] = choose_replicas(np.zeros_like(samples), samples, replicas=replicas)
    # 0.4 / sqrt(64) = 5 % are elsewhere in each of the two epochs.
    assert np.mean(homes[0] == homes[1]) > 0.87
