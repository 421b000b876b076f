"""Trouble of disks, permissions and tokenizers: named, and nothing half-written is taken for whole."""

import multiprocessing
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.dataset import make_texts, write_jsonl
from toolkit.data.prepare.engines import Encoded, RecordEngine
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import load_tokenizer, train_tokenizer
from toolkit.data.prepare.tokens import prepare
from toolkit.errors import DataError, StorageError, ToolkitError


@pytest.fixture
def asked(tmp_path: Path) -> Preparation:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_texts())
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer([str(corpus)], column="text", vocab_size=300, path=tokenizer)
    return Preparation(inputs=(str(corpus),), tokenizer=str(tokenizer), validation=0.2, tokens_per_shard=4000)


def run_apart(work: Callable[[], object]) -> str:
    """Run in a forked process, whose limits and user may be changed; give the error it met."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def serve() -> None:
        try:
            work()
            theirs.send("")
        except ToolkitError as error:
            theirs.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=serve)
    process.start()
    theirs.close()
    try:
        answer: str = ours.recv()
    finally:
        process.join()
    return answer


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=104k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted: run the tests as root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_named_and_more_room_is_enough(asked: Preparation, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(48 << 10))
    with pytest.raises(StorageError, match="No space left on device"):
        prepare(asked, small_disk / "out")
    assert not (small_disk / "out").exists()
    filler.unlink()
    manifest, is_new = prepare(asked, small_disk / "out")
    assert is_new
    assert manifest.fingerprint == prepare(asked, small_disk.with_name("elsewhere"))[0].fingerprint


def test_a_limit_on_files_is_named(asked: Preparation, tmp_path: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        prepare(asked, tmp_path / "out")

    assert "File too large" in run_apart(work)
    assert not (tmp_path / "out").exists()
    assert prepare(asked, tmp_path / "out")[1]


@pytest.mark.parametrize("what", ["corpus.jsonl", "tokenizer.json", "."])
def test_missing_permission_is_named(asked: Preparation, tmp_path: Path, what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else: run the tests as root")
    folder = Path(shutil.copytree(tmp_path, f"/tmp/toolkit-{tmp_path.name}-{os.getpid()}", dirs_exist_ok=True))
    try:
        folder.chmod(0o755 if what == "." else 0o777)
        (folder / what).chmod(0o755 if what == "." else 0)

        def work() -> None:
            os.setuid(65534)
            inputs = (str(folder / "corpus.jsonl"),)
            other = Preparation(inputs=inputs, tokenizer=str(folder / "tokenizer.json"), validation=0.2)
            prepare(other, folder / "out")

        message = run_apart(work)
        assert "Permission denied" in message
        assert str(folder / (what if what != "." else "out")) in message
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("bad_id", [300, 70_000])
def test_an_id_beyond_the_vocabulary_is_refused_with_its_place(
    asked: Preparation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_id: int
) -> None:
    class Broken(RecordEngine):
        def encode(self, texts: list[bytes]) -> Encoded:
            encoded = super().encode(texts)
            ids = encoded.ids.copy()
            ids[encoded.offsets[1]] = bad_id  # the first id of the second document
            return Encoded(ids, encoded.offsets)

    monkeypatch.setattr("toolkit.data.prepare.tokens.load_engine", lambda text, **_: Broken(text))
    size = load_tokenizer(asked.tokenizer).get_vocab_size()
    second = len((tmp_path / "corpus.jsonl").read_bytes().split(b"\n", 2)[0] + b"\n")
    second += len((tmp_path / "corpus.jsonl").read_bytes().split(b"\n", 2)[1] + b"\n")
    with pytest.raises(
        DataError, match=rf"corpus.jsonl: .* {second} has token id {bad_id}\n  the tokenizer has {size} "
    ):
        prepare(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gaps_in_the_ids_do_not_count_as_beyond_the_vocabulary(asked: Preparation, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(asked.tokenizer)
    text = tokenizer.to_str().replace('"id":0,"content":"<|endoftext|>"', '"id":70000,"content":"<|endoftext|>"')
    text = text.replace('"<|endoftext|>":0', '"<|endoftext|>":70000')
    Path(asked.tokenizer).write_text(text)
    manifest, _ = prepare(asked, tmp_path / "out")
    assert (manifest.dtype, manifest.tokenizer.vocab_size, manifest.tokenizer.eos_id) == ("uint32", 70_001, 70_000)


def test_a_truncated_file_that_is_copied_again_is_read_from_its_beginning(asked: Preparation, tmp_path: Path) -> None:
    """Same size, same samples: what was made of it before is not trusted all the same."""
    import gzip

    lines = "".join(f'{{"text": "{text}"}}\n' for text in make_texts(3000)).encode()
    whole = gzip.compress(lines, compresslevel=0)
    path = tmp_path / "packed.jsonl.gz"
    damaged = bytearray(whole)
    place = len(whole) // 6  # between the samples by which an input is known
    damaged[place : place + 4] = b"\xff\xff\xff\xff" if damaged[place : place + 4].isalpha() else b"zzzz"
    path.write_bytes(damaged)
    options = {"tokenizer": asked.tokenizer, "validation": 0.2, "tokens_per_shard": 20_000}
    packed = Preparation(inputs=(str(path),), **options)
    with pytest.raises(DataError):
        prepare(packed, tmp_path / "out")
    path.write_bytes(whole)
    found, _ = prepare(packed, tmp_path / "out")
    (tmp_path / "plain.jsonl").write_bytes(lines)
    expected, _ = prepare(Preparation(inputs=(str(tmp_path / "plain.jsonl"),), **options), tmp_path / "plain")
    assert found.fingerprint == expected.fingerprint


def test_empty_documents_and_an_empty_split_are_told(asked: Preparation, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "empty.jsonl", ["", "one text", ""])
    with pytest.raises(DataError, match="split is empty"):
        prepare(Preparation(inputs=(str(corpus),), tokenizer=asked.tokenizer), tmp_path / "out")


def test_provenance_says_what_was_removed_before(asked: Preparation, tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text('{"removed": {"duplicates": 7}}')
    manifest, _ = prepare(asked, tmp_path / "out")
    assert manifest.provenance["corpus"] == {str(tmp_path): {"removed": {"duplicates": 7}}}


def test_shards_hold_the_right_unigram_counts(asked: Preparation, tmp_path: Path) -> None:
    from toolkit.data.prepare.tokens import unigram_loss
    from toolkit.data.shard import Shard

    manifest, _ = prepare(asked, tmp_path / "out")
    size = manifest.tokenizer.vocab_size
    train, validation = (
        sum(np.bincount(Shard(tmp_path / "out" / entry.path).tokens, minlength=size) for entry in entries)
        for entries in manifest.splits.values()
    )
    assert manifest.unigram_loss == pytest.approx(unigram_loss(train, validation))
