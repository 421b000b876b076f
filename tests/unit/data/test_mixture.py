"""Mixtures: exact proportions at every point, one tokenizer, one identity."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataset import make_dataset, make_texts, write_jsonl
from toolkit.config.schema import DataSection
from toolkit.data.mixture import count_dealt, deal, find_samples, identify, mean_unigram_loss, open_members
from toolkit.data.order import draw_samples
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.data.prepare.tokens import prepare
from toolkit.errors import DataError

Weights = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


def normalise(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


@given(Weights, st.integers(1, 3000))
@settings(max_examples=80, deadline=None)
def test_proportions_hold_at_every_position(weights: list[float], num_positions: int) -> None:
    shares = normalise(weights)
    members, ordinals = deal(np.arange(num_positions), shares=shares)
    for member, share in enumerate(shares):
        is_its = members == member
        assert ordinals[is_its].tolist() == list(range(is_its.sum()))
        wanted = share * np.arange(1, num_positions + 1)
        assert np.abs(np.cumsum(is_its) - wanted).max() <= (member + 1) / 2 + 1e-3


@given(Weights, st.integers(0, 2**50))
@settings(max_examples=80, deadline=None)
def test_a_position_far_on_is_found_without_the_ones_before_it(weights: list[float], first: int) -> None:
    shares = normalise(weights)
    members, ordinals = deal(np.arange(first, first + 50), shares=shares)
    counts = count_dealt(first, shares=shares)
    assert sum(counts) == first
    for member, ordinal in zip(members.tolist(), ordinals.tolist(), strict=True):
        assert ordinal == counts[member]
        counts[member] += 1
    assert counts == count_dealt(first + 50, shares=shares)


@given(Weights, st.integers(0, 10**6), st.integers(1, 9000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_samples_are_found_piece_by_piece_as_all_at_once(
    weights: list[float], first: int, count: int, shuffle: bool
) -> None:
    shares = tuple(normalise(weights))
    num_samples = tuple(100 + 7 * member for member in range(len(shares)))
    options = {"num_samples": num_samples, "shares": shares, "seed": 3, "shuffle": shuffle}
    members, samples = find_samples(first, count, **options)  # type: ignore[arg-type]
    wanted, ordinals = deal(np.arange(first, first + count), shares=shares)
    assert np.array_equal(members, wanted)
    for member, size in enumerate(num_samples):
        mine = members == member
        drawn = draw_samples(ordinals[mine], num_samples=size, seed=3, part=member, shuffle=shuffle)
        assert np.array_equal(samples[mine], drawn)


def test_proportions_do_not_drift_in_a_thousand_million_samples() -> None:
    shares = normalise([5.0, 3.0, 1.0, 0.1])
    counts = count_dealt(10**9, shares=shares)
    assert counts == pytest.approx([share * 10**9 for share in shares], abs=3)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    first, _ = make_dataset(tmp_path_factory.mktemp("first"))
    folder = tmp_path_factory.mktemp("second")
    corpus = write_jsonl(folder / "corpus.jsonl", make_texts(200)[::-1])
    prepare(Preparation(inputs=(str(corpus),), tokenizer=str(first), validation=0.2), folder / "dataset")
    return str(first), str(folder / "dataset")


def test_an_identity_tells_tokens_proportions_and_order(datasets: tuple[str, str]) -> None:
    first, second = datasets
    data = DataSection(seq_len=64)
    alone = open_members({first: 3.0})
    fingerprint = alone[0].manifest.fingerprint
    assert identify(alone, data) == f"{fingerprint} seq_len=64"
    both = identify(open_members({first: 3.0, second: 1.0}), data)
    assert both.startswith(f"0.75 x {fingerprint} + 0.25 x ")
    assert both == identify(open_members({first: 0.3, second: 0.1}), data)
    others = [
        identify(open_members({first: 1.0, second: 1.0}), data),
        identify(open_members({second: 1.0, first: 3.0}), data),
        identify(open_members({first: 3.0, second: 1.0}), DataSection(seq_len=65)),
        identify(open_members({first: 3.0, second: 1.0}), DataSection(seq_len=64, shuffle=False)),
    ]
    assert len({both, *others}) == 5


def test_members_have_short_names_that_differ(datasets: tuple[str, str]) -> None:
    names = [member.name for member in open_members({path: 1.0 for path in datasets})]
    assert names == [f"{Path(path).parent.name}-dataset" for path in datasets]
    assert [member.name for member in open_members({datasets[0]: 1.0})] == ["dataset"]


def test_the_unigram_loss_of_a_mixture_is_weighted_and_unknown_where_one_is(datasets: tuple[str, str]) -> None:
    first, second = open_members({datasets[0]: 3.0, datasets[1]: 1.0})
    losses = [first.manifest.unigram_loss, second.manifest.unigram_loss]
    assert losses[0] is not None
    assert losses[1] is not None
    assert mean_unigram_loss([first, second]) == pytest.approx(0.75 * losses[0] + 0.25 * losses[1])
    silent = replace(second, manifest=replace(second.manifest, unigram_loss=None))
    assert mean_unigram_loss([first, silent]) is None


def test_datasets_of_other_tokenizers_are_refused_with_both(datasets: tuple[str, str], tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_texts())
    train_tokenizer([str(corpus)], column="text", vocab_size=280, path=tmp_path / "other.json")
    asked = Preparation(inputs=(str(corpus),), tokenizer=str(tmp_path / "other.json"), validation=0.2)
    other, _ = prepare(asked, tmp_path / "dataset")
    ours = open_members({datasets[0]: 1.0})[0].manifest.tokenizer
    with pytest.raises(DataError) as caught:
        open_members({datasets[0]: 1.0, str(tmp_path / "dataset"): 1.0})
    for text in (ours.sha256[:16], other.tokenizer.sha256[:16], datasets[0], str(tmp_path / "dataset")):
        assert text in str(caught.value)
