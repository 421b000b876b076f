"""Engines: the fast one gives the ids of the one of record, or is not used."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataset import make_texts, write_jsonl
from toolkit.data.prepare.engines import (
    ComparedEngine,
    Encoded,
    EnginesDifferError,
    FastEngine,
    RecordEngine,
    load_engine,
)
from toolkit.data.prepare.tokenizer import load_tokenizer, train_tokenizer
from toolkit.errors import DataError


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    corpus = write_jsonl(folder / "corpus.jsonl", make_texts())
    train_tokenizer([str(corpus)], column="text", vocab_size=400, path=folder / "tokenizer.json")
    return Path(folder / "tokenizer.json").read_text()


class Miscounting:
    """An engine that goes wrong in one word."""

    def __init__(self, right: RecordEngine) -> None:
        self._right = right

    def encode(self, texts: Sequence[bytes]) -> Encoded:
        encoded = self._right.encode(texts)
        return Encoded(encoded.ids + (b"wrong" in b"".join(texts)), encoded.offsets)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(), max_size=8))
def test_both_engines_give_the_same_ids(tokenizer_json: str, texts: list[str]) -> None:
    data = [text.encode() for text in texts]
    fast = FastEngine(tokenizer_json, parallel=False).encode(data)
    record = RecordEngine(tokenizer_json).encode(data)
    assert np.array_equal(fast.ids, record.ids)
    assert np.array_equal(fast.offsets, record.offsets)
    assert len(record.offsets) == len(texts) + 1


def test_a_difference_is_caught_and_its_text_named(tokenizer_json: str) -> None:
    record = RecordEngine(tokenizer_json)
    engine = ComparedEngine(Miscounting(record), record)
    engine.encode([b"right"])
    with pytest.raises(EnginesDifferError, match="differ from token 0 of a text that begins 'something wrong'"):
        engine.encode([b"something wrong"])


def test_a_small_part_is_compared_and_the_start_of_every_input(tokenizer_json: str) -> None:
    record = RecordEngine(tokenizer_json)
    engine = ComparedEngine(Miscounting(record), record)
    many = [b"some words " * 100] * 100
    engine.encode(many)
    engine.encode([b"wrong"])  # far from the start of a text, one in a thousand is looked at
    engine.begin_input()
    with pytest.raises(EnginesDifferError):
        engine.encode([b"wrong"])


def test_a_truncating_tokenizer_loses_no_text(tokenizer_json: str) -> None:
    fields = json.loads(tokenizer_json)
    fields["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    text = " ".join(make_texts()[:3]).encode()
    expected = RecordEngine(tokenizer_json).encode([text]).ids
    for name in ("auto", "tokenizers"):
        engine = load_engine(json.dumps(fields), name=name, parallel=False)
        assert np.array_equal(engine.encode([text]).ids, expected)
    assert load_engine(json.dumps(fields), name="auto", parallel=False).name == "gigatoken"


def test_a_tokenizer_that_gigatoken_does_not_know_falls_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1, "<|endoftext|>": 2}, "unk_token": "<unk>"}
    text = json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model})
    with caplog.at_level(logging.WARNING):
        engine = load_engine(text, name="auto", parallel=False)
    assert engine.name == "tokenizers"
    assert "gigatoken cannot stand in for it" in caplog.text
    assert engine.encode([b"a b a"]).ids.tolist() == [0, 1, 0]
    with pytest.raises(DataError, match="--engine auto"):
        load_engine(text, name="gigatoken", parallel=False)


def test_a_full_cache_changes_no_id(tokenizer_json: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text.encode() for text in make_texts()]
    expected = FastEngine(tokenizer_json, parallel=False).encode(texts)
    monkeypatch.setattr("toolkit.data.prepare.engines._CACHE_BYTES", -1)
    restarting = FastEngine(tokenizer_json, parallel=False)
    found = [restarting.encode([text]).ids for text in texts]
    assert np.array_equal(np.concatenate(found), expected.ids)


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer .* cannot be loaded"):
        load_tokenizer(str(tmp_path))
