"""Text to shards: what is written is what was read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.dataset import make_dataset, make_texts, write_jsonl
from toolkit.data.manifest import Manifest, check_sizes, read_manifest
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import load_tokenizer
from toolkit.data.prepare.tokens import prepare, unigram_loss
from toolkit.data.shard import Shard, verify_shard
from toolkit.data.text.sources import find_inputs, read_documents
from toolkit.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    return make_dataset(tmp_path_factory.mktemp("tokens"))


def test_every_document_comes_back_with_its_end_of_text(made: tuple[Path, Manifest]) -> None:
    dataset, manifest = made
    tokenizer = load_tokenizer(str(dataset))
    texts = []
    for entry in [entry for split in manifest.splits.values() for entry in split]:
        shard = Shard(dataset / entry.path)
        for first, last in zip(shard.offsets, shard.offsets[1:], strict=False):
            ids = shard.tokens[first:last]
            assert ids[-1] == manifest.tokenizer.eos_id
            texts.append(tokenizer.decode(ids[:-1].tolist()))
    assert sorted(texts) == sorted(make_texts())
    assert len(manifest.splits["train"]) > 1


def test_datasets_opens_the_directory(made: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    dataset, manifest = made
    opened = datasets.load_from_disk(str(dataset))
    assert {name: split.num_rows for name, split in opened.items()} == {
        name: manifest.num_documents(name) for name in manifest.splits
    }
    assert sum(len(row["input_ids"]) for row in opened["train"]) == manifest.num_tokens("train")


def test_a_document_keeps_its_side_when_the_corpus_grows(tmp_path: Path, made: tuple[Path, Manifest]) -> None:
    dataset, before = made
    grown = write_jsonl(tmp_path / "grown.jsonl", ["a new document at the front", *make_texts()])
    asked = Preparation(inputs=(str(grown),), tokenizer=str(dataset), validation=0.2)
    after, _ = prepare(asked, tmp_path / "out")
    sizes = [after.num_documents(name) - before.num_documents(name) for name in ("train", "validation")]
    assert sorted(sizes) == [0, 1]


def test_a_second_preparation_is_up_to_date_and_another_one_is_refused(tmp_path: Path) -> None:
    dataset, first = make_dataset(tmp_path)
    asked = Preparation(
        inputs=(str(tmp_path / "corpus.jsonl"),),
        tokenizer=str(tmp_path / "tokenizer.json"),
        validation=0.2,
        tokens_per_shard=4000,
    )
    assert prepare(asked, dataset) == (first, False)
    write_jsonl(tmp_path / "corpus.jsonl", make_texts()[:-1])
    with pytest.raises(DataError, match="made from other inputs"):
        prepare(asked, dataset)


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    dataset, manifest = make_dataset(tmp_path)
    flipped, cut, *_ = manifest.splits["train"]
    data = bytearray((dataset / flipped.path).read_bytes())
    data[len(data) // 2] ^= 1
    (dataset / flipped.path).write_bytes(data)
    (dataset / cut.path).write_bytes((dataset / cut.path).read_bytes()[:-10])
    assert "checksum" in verify_shard(dataset / flipped.path, flipped, vocab_size=300)[0]
    assert check_sizes(str(dataset), manifest.splits["train"]) == [
        f"{dataset / cut.path} has {cut.num_bytes - 10} bytes instead of {cut.num_bytes}"
    ]
    script = Path(__file__).parents[3] / "data_prep" / "check_shards.py"
    done = subprocess.run([sys.executable, script, dataset], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert flipped.path in done.stderr
    (dataset / "manifest.json").unlink()
    with pytest.raises(DataError, match="unfinished"):
        read_manifest(str(dataset))


def test_an_id_beyond_the_vocabulary_is_found(made: tuple[Path, Manifest]) -> None:
    dataset, manifest = made
    entry = manifest.splits["train"][0]
    top = int(Shard(dataset / entry.path).tokens.max())
    assert verify_shard(dataset / entry.path, entry, vocab_size=top + 1) == []
    assert f"token id {top}" in verify_shard(dataset / entry.path, entry, vocab_size=top)[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{broken\n', r"a.jsonl:2 \(byte 14\) is no JSON"),
        ("b.jsonl", b'{"txt": "x"}\n', "no text in field 'text'; it has: txt"),
        ("c.jsonl", b'{"text": "\xff"}\n', r"c.jsonl:1 \(byte 0\) is not UTF-8"),
        ("d.txt", b"ok \xff", "d.txt is not UTF-8 .byte 3"),
        ("e.jsonl.gz", b"\x1f\x8b\x08\x00 cut", "cut off or damaged"),
        ("f.parquet", b"PAR1 no", "no Parquet file"),
    ],
)
def test_bad_input_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(str(path), column="text"))


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    texts = ["one", "two\nlines", "drei \N{SNOWMAN}"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    pq.write_table(pa.table({"text": texts}), tmp_path / "d.parquet")
    for file in find_inputs([str(tmp_path)]):
        assert [document.text for document in read_documents(file, column="text")] == texts, file


def test_the_unigram_loss_of_even_counts_is_the_log_of_the_vocabulary() -> None:
    counts = np.full(64, 1000)
    assert unigram_loss(counts, counts) == pytest.approx(np.log(64))
