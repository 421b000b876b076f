"""The order of samples, and what a replica reads of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataset import make_dataset
from toolkit.data.loader import StepLoader
from toolkit.data.order import permute, sample_indices
from toolkit.data.stream import TokenStream, count_samples
from toolkit.topology import BatchShape


@given(st.integers(1, 5000), st.integers(0, 2**31), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    places = np.arange(num_samples)
    assert sorted(permute(places, num_samples=num_samples, seed=seed, epoch=epoch)) == list(places)


def test_the_permutation_works_at_a_trillion_samples() -> None:
    num_samples = 10**12
    mapped = permute(np.arange(10_000), num_samples=num_samples, seed=1, epoch=0)
    assert len(set(mapped.tolist())) == 10_000
    assert mapped.min() >= 0
    assert mapped.max() < num_samples
    assert np.mean(mapped) == pytest.approx(num_samples / 2, rel=0.05)


@given(st.integers(1, 400), st.integers(1, 64), st.integers(0, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_sample_is_seen_once_an_epoch(num_samples: int, per_step: int, seed: int, shuffle: bool) -> None:
    steps = -(-2 * num_samples // per_step)
    options = {"num_samples": num_samples, "samples_per_step": per_step, "seed": seed, "shuffle": shuffle}
    seen = np.concatenate([sample_indices(step, **options) for step in range(steps)])
    assert sorted(seen[:num_samples]) == list(range(num_samples))
    assert sorted(seen[num_samples : 2 * num_samples]) == list(range(num_samples))


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    dataset, manifest = make_dataset(tmp_path_factory.mktemp("order"))
    return TokenStream(str(dataset), manifest.splits["train"])


@pytest.mark.parametrize("seq_len", [7, 64, 1000])
def test_every_token_of_an_epoch_is_predicted_once(stream: TokenStream, seq_len: int) -> None:
    count = count_samples(stream.num_tokens, seq_len=seq_len)
    rows = np.stack([stream.sample(index, seq_len=seq_len) for index in range(count)])
    whole = stream.read(0, stream.num_tokens)
    assert np.array_equal(rows[:, 1:].ravel(), whole[1 : 1 + count * seq_len])
    assert np.array_equal(rows[:, :-1].ravel(), whole[: count * seq_len])
    assert stream.num_tokens - 1 - count * seq_len < seq_len


@pytest.mark.parametrize(("replicas", "micro_batch"), [(1, 16), (2, 4), (4, 2), (1, 2), (4, 4)])
def test_the_rows_of_a_step_do_not_depend_on_the_layout(stream: TokenStream, replicas: int, micro_batch: int) -> None:
    assert read_step(stream, 3, replicas, micro_batch) == read_step(stream, 3, 1, 1)


def read_step(stream: TokenStream, step: int, replicas: int, micro_batch: int) -> list[list[int]]:
    shape = BatchShape(samples_per_step=16, micro_batch=micro_batch, replicas=replicas)
    loader = StepLoader(stream, seq_len=32, batch=shape, seed=5, shuffle=True)
    batches = [pair for replica in range(replicas) for pair in loader.micro_batches(step, replica=replica)]
    rows = [row for tokens, labels in batches for row in zip(tokens.tolist(), labels.tolist(), strict=True)]
    assert all(tokens[1:] == labels[:-1] for tokens, labels in rows)
    return sorted(tokens for tokens, _ in rows)
