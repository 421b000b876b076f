"""Duplicates: found at their similarity, the first in input order stays, and nothing else decides anything."""

import hashlib
import itertools
import json
import operator
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus import StoppedError, change_words, make_prose, read_bytes, read_texts, show_nothing, stop_at
from toolkit.data.quality.clusters import Signatures, cluster, flatten, join, write_signatures
from toolkit.data.quality.dedup import NUM_HASHES, Deduplication, bands_for, chance, deduplicate, sign
from toolkit.errors import DataError

GIB = 2**30


def write(path: Path, texts: list[str]) -> Path:
    path.write_text(
        "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(texts)), encoding="utf-8"
    )
    return path


def run(out: Path, *inputs: Path, threshold: float | None = 0.8, **others: Any) -> dict[str, Any]:
    asked = Deduplication(inputs=tuple(map(str, inputs)), threshold=threshold)
    settings = {"jobs": 1, "memory_bytes": GIB, "scratch": None, "show": show_nothing, **others}
    return deduplicate(asked, str(out), **settings)


def jaccard(left: str, right: str) -> float:
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (left.split(), right.split()))
    return len(a & b) / len(a | b)


def test_the_first_of_each_cluster_stays_across_inputs(tmp_path: Path) -> None:
    texts = [make_prose(seed, num_words=400) for seed in range(6)]
    near = change_words(texts[1], 3, seed=9)
    a = write(tmp_path / "a.jsonl", [texts[0], texts[1], texts[0]])
    b = write(tmp_path / "b.jsonl", [near, texts[2], texts[0], texts[3], change_words(texts[3], 40, seed=8)])
    made = run(tmp_path / "out", a, b)
    assert read_texts(tmp_path / "out") == [texts[:2], [texts[2], texts[3], change_words(texts[3], 40, seed=8)]]
    assert made["totals"]["removed"] == {"exact": 2, "near": 1}
    assert made["parts"][1]["removed"] == {"exact": 1, "near": 1}
    assert made["totals"]["samples"] == {"exact": [f"{a}:3", f"{b}:3"], "near": [f"{b}:1"]}
    assert made["clusters"] == 2
    [example] = made["examples"]
    assert (example["kept"], example["removed"]) == (f"{a}: document 2", f"{b}: document 1")
    assert example["similarity"] == pytest.approx(jaccard(texts[1], near), abs=0.1)


def test_exact_only_leaves_near_ones(tmp_path: Path) -> None:
    text = make_prose(1, num_words=300)
    a = write(tmp_path / "a.jsonl", [text, text + " ", text, "...", "...", "!!!"])
    made = run(tmp_path / "out", a, threshold=None)
    assert read_texts(tmp_path / "out") == [[text, text + " ", "...", "!!!"]]
    assert made["totals"]["removed"] == {"exact": 2}


def test_texts_without_words_are_like_nothing_else(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", ["...", "!!!", "-", "...", "one", "two", "one"])
    run(tmp_path / "out", a)
    assert read_texts(tmp_path / "out") == [["...", "!!!", "-", "one", "two"]]


def test_an_input_without_documents_gets_an_empty_part(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", [""]), write(tmp_path / "b.jsonl", ["x", "x"])
    run(tmp_path / "out", a, b)
    assert read_texts(tmp_path / "out") == [[], ["x"]]


def test_memory_and_jobs_do_not_change_a_byte(tmp_path: Path) -> None:
    texts = [make_prose(seed % 40, num_words=80) for seed in range(120)]
    texts += [change_words(text, 1, seed=place) for place, text in enumerate(texts)]
    names = [write(tmp_path / f"{part}.jsonl", texts[part::3]) for part in range(3)]
    run(tmp_path / "one", *names)
    run(tmp_path / "two", *names, jobs=2)
    run(tmp_path / "three", *names, scratch=tmp_path / "scratch")
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "two") == read_bytes(tmp_path / "three")
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("count", range(1, 7))
def test_a_run_stopped_after_any_input_of_any_pass_goes_on_to_the_same_bytes(tmp_path: Path, count: int) -> None:
    texts = [make_prose(seed % 5, num_words=60) for seed in range(12)]
    names = [write(tmp_path / f"{part}.jsonl", texts[part::3]) for part in range(3)]
    run(tmp_path / "one", *names)
    with pytest.raises(StoppedError):
        run(tmp_path / "two", *names, show=stop_at(count))
    assert not (tmp_path / "two").exists()
    run(tmp_path / "two", *names)
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "two")


def test_an_input_that_changed_since_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", ["x y", "z"])
    run(tmp_path / "out", a)
    assert run(tmp_path / "out", a)["totals"]["documents_kept"] == 2
    write(a, ["x y", "w"])
    with pytest.raises(DataError, match=f"input {a} has changed"):
        run(tmp_path / "out", a)
    with pytest.raises(DataError, match=r"threshold: 0\.8 there, 0\.9 asked"):
        run(tmp_path / "out", a, threshold=0.9)


def test_signatures_estimate_the_similarity_of_runs_of_words() -> None:
    texts = [make_prose(seed, num_words=300) for seed in range(20)]
    pairs = [(text, change_words(text, count, seed=count)) for count, text in enumerate(texts)]
    left, right = sign([a for a, _ in pairs]), sign([b for _, b in pairs])
    estimates = (left == right).mean(axis=1)
    true = np.array([jaccard(a, b) for a, b in pairs])
    deviation = np.sqrt(true * (1 - true) / NUM_HASHES) + 0.01
    assert (np.abs(estimates - true) < 4 * deviation).all()
    assert estimates[0] == 1.0


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_a_pair_at_the_threshold_shares_a_band_nine_times_in_ten(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert bands * rows <= NUM_HASHES
    assert chance(threshold, bands, rows) >= 0.9
    assert threshold == 1.0 or chance(threshold, NUM_HASHES // (rows + 1), rows + 1) < 0.9


def test_similar_documents_are_found_and_others_left(tmp_path: Path) -> None:
    originals = [make_prose(seed, num_words=200) for seed in range(60)]
    close = [change_words(text, 2, seed=place) for place, text in enumerate(originals)]
    apart = [change_words(text, 25, seed=place) for place, text in enumerate(originals)]
    assert min(jaccard(a, b) for a, b in zip(originals, close, strict=True)) > 0.88
    assert max(jaccard(a, b) for a, b in zip(originals, apart, strict=True)) < 0.65
    made = run(tmp_path / "out", write(tmp_path / "a.jsonl", [*originals, *close, *apart]))
    [kept] = read_texts(tmp_path / "out")
    assert kept[:60] == originals
    assert len(set(close) & set(kept)) <= 2
    assert len(set(apart) & set(kept)) >= 58
    assert made["totals"]["documents_kept"] == len(kept)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_joining_gives_every_document_the_smallest_of_its_cluster(pairs: list[tuple[int, int]]) -> None:
    labels = np.arange(31, dtype=np.uint32)
    join(labels, *np.array(pairs, np.int64).reshape(-1, 2).T)
    flatten(labels)
    expected = list(range(31))
    for _ in expected:
        for a, b in pairs:
            expected = [min(expected[a], expected[b]) if one in (expected[a], expected[b]) else one for one in expected]
    assert labels.tolist() == expected


def make_signatures(place: Path, rows: list[list[int]], *, texts: list[int], bands: int) -> Signatures:
    """Write the signatures of made-up documents: equal numbers in `texts` stand for equal texts."""
    minhashes = np.array(rows, np.uint64).reshape(len(rows), -1)
    halves = [(hash_of_number(text), text) for text in texts]
    with write_signatures(place, 0, bands=bands) as writer:
        writer.add(halves, minhashes)
    return Signatures(place, [len(rows)], hashes=minhashes.shape[1], bands=bands)


def hash_of_number(number: int) -> int:
    return int.from_bytes(hashlib.blake2b(str(number).encode(), digest_size=8).digest(), "big")


def components(rows: list[list[int]], *, bands: int, least: float) -> list[int]:
    """Say by the definition which documents belong together: for each the first one of its cluster."""
    width = len(rows[0]) // bands
    first = list(range(len(rows)))
    for a, b in itertools.combinations(range(len(rows)), 2):
        share = any(rows[a][band::bands][:width] == rows[b][band::bands][:width] for band in range(bands))
        if share and sum(map(operator.eq, rows[a], rows[b])) >= least * len(rows[a]):
            low, high = sorted((first[a], first[b]))
            first = [low if one == high else one for one in first]
    return first


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), count=st.integers(2, 24), memory=st.sampled_from([1, GIB]))
def test_clusters_are_the_connected_components_of_what_agrees(data: st.DataObject, count: int, memory: int) -> None:
    """Few values a hash, so that chains, crowded groups and equal signatures come up."""
    row = st.lists(st.integers(0, 1), min_size=8, max_size=8)
    rows = data.draw(st.lists(row, min_size=count, max_size=count))
    order = data.draw(st.permutations(range(count)))
    expected = components(rows, bands=4, least=0.75)
    kept = []
    for numbers in (range(count), order):
        with tempfile.TemporaryDirectory() as place:
            signatures = make_signatures(Path(place), [rows[n] for n in numbers], texts=list(numbers), bands=4)
            found = cluster(signatures, threshold=0.75, memory_bytes=memory)
        kept.append({expected[number] for number, verdict in zip(numbers, found.verdicts, strict=True) if not verdict})
        assert (found.verdicts == 0).sum() == len(set(expected))
    assert kept == [set(expected)] * 2, "one document of each cluster stays, whatever their order"


def test_a_crowd_that_does_not_agree_is_split_alike_in_any_order(tmp_path: Path) -> None:
    """300 documents share a key; pairs of them agree, more than are compared with all."""
    rng = np.random.default_rng(0)
    rows = [[1, 1, *map(int, rng.integers(0, 2**32, 6))] for _ in range(300)]
    rows += [[*row[:7], 7] for row in rows]
    clusters = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(600).tolist()
        signatures = make_signatures(tmp_path / str(seed), [rows[n] for n in order], texts=order, bands=4)
        clusters.append(int((cluster(signatures, threshold=0.75, memory_bytes=GIB).verdicts == 0).sum()))
    assert clusters == [300] * 3


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_similarity_is_handed_on_in_any_order(order: str, tmp_path: Path) -> None:
    """a and b are alike, b and c are, a and c are not: one document of each chain stays."""
    chains = []
    for seed in range(20):
        b = make_prose(seed, num_words=400)
        half = len(b) // 2
        a = change_words(b[:half], 3, seed=seed) + b[half:]
        c = b[:half] + change_words(b[half:], 3, seed=seed + 100)
        chains.append({"a": a, "b": b, "c": c})
    assert all(jaccard(one["a"], one["b"]) > 0.85 and jaccard(one["b"], one["c"]) > 0.85 for one in chains)
    texts = [chain[name] for name in order for chain in chains]
    made = run(tmp_path / "out", write(tmp_path / "a.jsonl", texts))
    assert made["totals"]["documents_kept"] <= 21, "a pair shares no band once in ten times, a chain has two ways"
