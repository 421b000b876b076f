"""What the small scripts say: estimates that hold the truth, surveys that count right, progress in words."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tests.dataset import WORDS, make_dataset, write_jsonl
from toolkit.data.manifest import Manifest
from toolkit.data.prepare.bar import _Lines
from toolkit.data.prepare.estimate import estimate_dataset
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.survey import count_lengths, survey_shards
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.data.prepare.tokens import prepare
from toolkit.errors import DataError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    return make_dataset(tmp_path_factory.mktemp("survey"))


def write_corpus(folder: Path, kind: str) -> Path:
    """Write texts whose lengths vary by a factor of a hundred."""
    rng = np.random.default_rng([0, 0, 0])
    texts = [" ".join(rng.choice(WORDS, size)) for size in (10 ** rng.uniform(0.5, 2.5, 1000)).astype(int)]
    plain = write_jsonl(folder / "corpus.jsonl", texts)
    if kind == "gz":
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
        return folder / "corpus.jsonl.gz"
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet", row_group_size=100)
        return folder / "corpus.parquet"
    return plain


@pytest.mark.parametrize("kind", ["jsonl", "gz", "parquet"])
def test_the_estimate_holds_the_truth(tmp_path: Path, kind: str) -> None:
    corpus = write_corpus(tmp_path, kind)
    train_tokenizer([str(corpus)], column="text", vocab_size=300, path=tmp_path / "tokenizer.json")
    asked = Preparation(inputs=(str(corpus),), tokenizer=str(tmp_path / "tokenizer.json"), tokens_per_shard=50_000)
    estimates = [
        estimate_dataset(
            asked, engine="tokenizers", num_places=20, place_bytes=10_000, rng=np.random.default_rng([seed, 0, 0])
        )
        for seed in range(6)
    ]
    manifest, _ = prepare(asked, tmp_path / "out")
    num_tokens = sum(manifest.num_tokens(split) for split in manifest.splits)
    num_shards = sum(len(entries) for entries in manifest.splits.values())
    assert sum(found.low_tokens <= num_tokens <= found.high_tokens for found in estimates) >= 5
    found = estimates[0]
    assert found.high_tokens - found.low_tokens < num_tokens / 4
    assert found.num_tokens == pytest.approx(num_tokens, rel=0.1)
    assert abs(found.num_shards - num_shards) <= 1
    assert found.cpu_hours > 0


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", b""), ("a.jsonl.gz", b"\x1f\x8b\x08\x00 cut")])
def test_an_estimate_of_nothing_or_of_a_damaged_file_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    corpus = write_jsonl(tmp_path / "words.jsonl", WORDS)
    train_tokenizer([str(corpus)], column="text", vocab_size=300, path=tmp_path / "tokenizer.json")
    (tmp_path / name).write_bytes(data)
    asked = Preparation(inputs=(str(tmp_path / name),), tokenizer=str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=name):
        estimate_dataset(asked, engine="auto", num_places=2, place_bytes=100, rng=np.random.default_rng([0, 0, 0]))


def test_a_survey_counts_documents_tokens_and_duplicates(made: tuple[Path, Manifest]) -> None:
    dataset, manifest = made
    entries = manifest.splits["train"]
    rng = np.random.default_rng([0, 0, 0])
    found = survey_shards(str(dataset), entries, num_samples=3, sample_tokens=20, rng=rng)
    assert found.num_documents == manifest.num_documents("train")
    assert found.num_tokens == manifest.num_tokens("train") == sum(row.num_tokens for row in found.lengths)
    assert found.num_duplicates == 0
    assert [len(sample.text) > 10 for sample in found.samples] == [True] * 3
    twice = survey_shards(str(dataset), [*entries, entries[0]], num_samples=0, sample_tokens=1, rng=rng)
    assert twice.num_duplicates == entries[0].num_documents


def test_lengths_fall_into_powers_of_two() -> None:
    rows = count_lengths(np.array([1, 2, 3, 4, 9]))
    assert [(row.low, row.high, row.num_documents, row.num_tokens) for row in rows] == [
        (1, 2, 1, 1),
        (2, 4, 2, 5),
        (4, 8, 1, 4),
        (8, 16, 1, 9),
    ]


def test_a_log_line_gives_rate_and_time_left_without_what_was_done_before() -> None:
    console = Console(file=io.StringIO())
    lines = _Lines(console, "tokenizing", total_bytes=10_000_000_000, done_bytes=4_000_000_000, now=0.0)
    lines.report(2_000_000_000)
    assert lines.describe(elapsed_s=20.0) == "tokenizing: 6.00 of 10.00 GB, 100 MB/s, left 0h00m40s"


def run_script(name: str, *arguments: str | Path) -> tuple[str, Any]:
    """Run a script with --json; give its text and the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, ROOT / "data_prep" / name, *arguments, "--json"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def test_the_scripts_say_what_they_found_in_words_and_in_json(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    dataset, manifest = made
    corpus, tokenizer = dataset.with_name("corpus.jsonl"), dataset.with_name("tokenizer.json")
    train_tokens = manifest.num_tokens("train")
    text, found = run_script("inspect_shards.py", dataset)
    assert found["num_tokens"] == train_tokens
    assert f"{train_tokens:,} tokens" in text
    text, found = run_script("tokenize_corpus.py", corpus, "--tokenizer", tokenizer, "--out", tmp_path / "out",
                             "--validation", "0.2", "--tokens-per-shard", "4000", "--jobs", "1")  # fmt: skip
    assert found["fingerprint"] == manifest.fingerprint
    assert manifest.fingerprint in text
    text, found = run_script("estimate_tokens.py", corpus, "--tokenizer", tokenizer)
    assert found["num_tokens"] == pytest.approx(train_tokens + manifest.num_tokens("validation"), rel=0.2)
    text, found = run_script("check_shards.py", dataset)
    assert found == {"datasets": 1, "shards": sum(map(len, manifest.splits.values())), "problems": []}
