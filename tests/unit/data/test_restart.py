"""A preparation killed at any moment and started again makes what an undisturbed one makes, byte for byte."""

import itertools
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.dataset import make_texts
from toolkit.data.prepare.engines import Encoded, EnginesDifferError, RecordEngine
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.data.prepare.tokens import begin, merge, prepare, progress, run_spans
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


def prepare_until(asked: Preparation, out: Path, *, event: int | None) -> int | None:
    """Prepare in a process that is killed before it touches a file of the dataset for the n-th time.

    Returns:
        How often it touched files; None: it was killed.
    """
    # A fork has everything loaded, and no thread of ours outlives a call.
    context = multiprocessing.get_context("fork")
    touched = context.Value("i", 0)

    def work() -> None:
        def hook(name: str, arguments: Any) -> None:
            if name in EVENTS and str(arguments[0]).startswith(str(out)):
                touched.value += 1
                if touched.value == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        prepare(asked, out)

    process = context.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return touched.value if process.exitcode == 0 else None


@pytest.fixture(scope="module")
def num_events(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    found = prepare_until(ask(corpus), tmp_path_factory.mktemp("counted") / "out", event=None)
    assert found is not None
    return found


@pytest.mark.parametrize("moment", [*(part / 12 for part in range(12)), *range(-12, 0)])
def test_killed_once_at_any_moment(
    corpus: Path, undisturbed: dict[str, bytes], num_events: int, tmp_path: Path, moment: float
) -> None:
    event = num_events + 1 + int(moment) if moment < 0 else 1 + int(moment * num_events)
    assert prepare_until(ask(corpus), tmp_path / "out", event=event) is None
    prepare(ask(corpus), tmp_path / "out")
    assert read_tree(tmp_path / "out") == undisturbed
    assert not (tmp_path / "out.partial").exists()


def test_killed_again_and_again(corpus: Path, undisturbed: dict[str, bytes], num_events: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kills = 0
    while prepare_until(ask(corpus), out, event=num_events // 3) is None:
        kills += 1
        assert kills < 100, "it does not get on"
        assert not out.exists(), "nothing unfinished has the name of a dataset"
    assert kills >= 3
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
    assert merge(partial_dir, out) == merge(partial_dir, out), "a merge may be started again"
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
    monkeypatch.setattr("toolkit.data.prepare.tokens.load_engine", load)
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
