"""A preparation killed at any moment and started again makes what an undisturbed one makes, byte for byte."""

import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.dataset import make_texts
from toolkit.data.engines import Encoded, EnginesDifferError, RecordEngine
from toolkit.data.preparation import Preparation, name_partial
from toolkit.data.tokenizer import train_tokenizer
from toolkit.data.tokens import begin, merge, prepare, progress, run_spans
from toolkit.errors import DataError

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL, packed JSONL with broken records in it, Parquet and text."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = iter(make_texts(300))

    def lines(count: int) -> bytes:
        return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in itertools.islice(texts, count))

    (folder / "a.jsonl").write_bytes(lines(90))
    packed = lines(30) + b"{broken\n\n" + lines(30) + b'{"text": ""}\n' + lines(40)
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(packed))
    pq.write_table(pa.table({"text": list(itertools.islice(texts, 80))}), folder / "c.parquet", row_group_size=11)
    (folder / "d.txt").write_text(" ".join(texts))
    train_tokenizer([str(folder / "a.jsonl")], column="text", vocab_size=300, path=folder / "tokenizer.json")
    return folder


def ask(corpus: Path, **options: Any) -> Preparation:
    inputs = (str(corpus / "a.jsonl"), str(corpus / "b.jsonl.zst"), str(corpus / "c.parquet"), str(corpus / "d.txt"))
    defaults = {"validation": 0.2, "tokens_per_shard": 1500, "span_bytes": 6000, "on_error": "skip"}
    return Preparation(**{"inputs": inputs, "tokenizer": str(corpus / "tokenizer.json"), **defaults, **options})


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    manifest, _ = prepare(ask(corpus), out)
    assert len(manifest.splits["train"]) > 6
    assert manifest.provenance["num_skipped"] == 1
    assert manifest.provenance["num_empty"] == 1
    assert manifest.provenance["skipped"][0]["path"].endswith("b.jsonl.zst")
    return read_tree(out)


def prepare_until(asked: Preparation, out: Path, *, event: int) -> bool:
    """Prepare in a process that is killed before it touches a file of the dataset for the n-th time.

    Returns:
        Whether it was.
    """

    def work() -> None:
        countdown: Iterator[int] = itertools.count(1)

        def hook(name: str, arguments: Any) -> None:
            if name in EVENTS and str(arguments[0]).startswith(str(out)) and next(countdown) == event:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        prepare(asked, out)

    # A fork has everything loaded; nothing that this test calls starts threads that outlive the call.
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0


@pytest.mark.parametrize("first", range(5))
def test_killed_once_at_any_moment(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path, first: int) -> None:
    for event in itertools.count(1 + first * 4, 20):
        out = tmp_path / str(event)
        was_killed = prepare_until(ask(corpus), out, event=event)
        prepare(ask(corpus), out)
        assert read_tree(out) == undisturbed
        assert not Path(name_partial(str(out))).exists()
        if not was_killed:
            return


def test_killed_again_and_again(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    kills = 0
    while prepare_until(ask(corpus), out, event=12):
        kills += 1
        assert not out.exists(), "nothing unfinished has the name of a dataset"
    assert kills > 5
    assert read_tree(out) == undisturbed


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_the_number_of_tasks_does_not_show(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path, num_tasks: int
) -> None:
    out = str(tmp_path / "out")
    partial_dir = begin(ask(corpus), out)
    assert partial_dir is not None
    for task in reversed(range(num_tasks)):
        with pytest.raises(DataError, match="spans are not done"):
            merge(partial_dir, out)
        run_spans(partial_dir, task=task, num_tasks=num_tasks)
    found = progress(partial_dir)
    assert found.num_spans_done == found.num_spans > 3
    assert found.num_bytes_done == found.num_bytes
    merge(partial_dir, out)
    assert read_tree(Path(out)) == undisturbed


def test_the_number_of_processes_does_not_show(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    prepare(ask(corpus), tmp_path / "out", jobs=2)
    assert read_tree(tmp_path / "out") == undisturbed


def test_engines_make_the_same_shards(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    prepare(ask(corpus), tmp_path / "out", engine="tokenizers")
    found = read_tree(tmp_path / "out")
    assert found.keys() == undisturbed.keys()
    assert [name for name in found if found[name] != undisturbed[name]] == ["manifest.json"]  # it names the engine


def test_an_engine_that_is_caught_late_leaves_no_trace(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last input has a word that the fast engine gets wrong: what it did before is done again."""

    class Caught(RecordEngine):
        name = "gigatoken"

        def encode(self, texts: Any) -> Encoded:
            if any(len(text) > 1000 for text in texts):
                raise EnginesDifferError("ids differ")
            encoded = super().encode(texts)
            return Encoded(encoded.ids[::-1], encoded.offsets)  # wrong, and not noticed until then

    def load(tokenizer_json: str, *, name: str, parallel: bool) -> RecordEngine:
        return RecordEngine(tokenizer_json) if name == "tokenizers" else Caught(tokenizer_json)

    prepare(ask(corpus), tmp_path / "right", engine="tokenizers")
    monkeypatch.setattr("toolkit.data.tokens.load_engine", load)
    prepare(ask(corpus), tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "right")


def test_changes_are_refused_by_name(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.jsonl"
    copy.write_bytes((corpus / "a.jsonl").read_bytes())
    asked = ask(corpus, inputs=(str(copy),))
    out = str(tmp_path / "out")
    partial_dir = begin(asked, out)
    assert partial_dir is not None
    with pytest.raises(DataError, match=r"other options\n  options.validation was 0.2, is 0.3\n"):
        begin(ask(corpus, inputs=(str(copy),), validation=0.3), out)
    other = tmp_path / "tokenizer.json"
    train_tokenizer([str(copy)], column="text", vocab_size=290, path=other)
    with pytest.raises(DataError, match=r"other tokenizer\n  tokenizer.sha256 was"):
        begin(ask(corpus, inputs=(str(copy),), tokenizer=str(other)), out)
    copy.write_bytes(copy.read_bytes().replace(b"cat", b"bat"))
    with pytest.raises(DataError, match=r"other inputs\n  .*a.jsonl has changed\n"):
        begin(asked, out)
    with pytest.raises(DataError, match=r"a.jsonl changed while a dataset was made from it"):
        run_spans(partial_dir)


def test_a_directory_of_somebody_else_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"exists and is no token dataset"):
        prepare(ask(corpus), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
