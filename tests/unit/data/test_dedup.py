"""Duplicates: found at their similarity, the first in input order stays, and nothing else decides anything."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus import StoppedError, change_words, make_prose, read_bytes, read_texts, show_nothing, stop_at
from toolkit.data.quality.clusters import flatten, join
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
