"""Control tokens: the end of a text is what the tokenizer declares, and what a text spells out stays text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests import tokenizers as kinds
from tests.dataset import make_texts, write_jsonl
from toolkit.data.manifest import read_manifest
from toolkit.data.prepare.control import ControlCounter, control_tokens
from toolkit.data.prepare.engines import load_engine, tokenizer_for_texts
from toolkit.data.prepare.fidelity import measure_loss
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import identify_tokenizer, load_tokenizer
from toolkit.data.prepare.tokens import prepare, summarize
from toolkit.data.shard import Shard
from toolkit.errors import DataError

DEEPSEEK = "<\uff5cend\u2581of\u2581sentence\uff5c>"
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GENERATION = "generation_config"


def end_of(folder: str, *, eos: str | None = None) -> str:
    tokenizer = load_tokenizer(folder)
    return str(tokenizer.id_to_token(identify_tokenizer(folder, tokenizer, eos=eos).eos_id))


@pytest.mark.parametrize(
    ("control", "beside", "end"),
    [
        (["<|endoftext|>"], {}, "<|endoftext|>"),
        (LLAMA, {}, "<|end_of_text|>"),
        (LLAMA, {"tokenizer_config": {"eos_token": "<|end_of_text|>"}}, "<|end_of_text|>"),
        (LLAMA, {"tokenizer_config": {"eos_token": "<|eot_id|>"}}, "<|eot_id|>"),
        (QWEN, {}, "<|endoftext|>"),
        (QWEN, {"tokenizer_config": {"eos_token": {"content": "<|im_end|>", "special": True}}}, "<|im_end|>"),
        (["<|im_start|>", "<|im_end|>"], {}, "<|im_end|>"),
        ([DEEPSEEK], {}, DEEPSEEK),
        (["<eos>", "<bos>"], {"tokenizer_config": {"eos_token": None}}, "<eos>"),
        (["<a>", "<b>"], {"tokenizer_config": {}, GENERATION: {"eos_token_id": [341]}}, "<b>"),
        (["<a>", "<b>"], {"tokenizer_config": {"eos_token": "<a>"}, GENERATION: {"eos_token_id": 341}}, "<a>"),
        (["<a>", "<b>"], {"manifest": {"tokenizer": {"eos_id": 341}}}, "<b>"),
    ],
)
def test_a_text_ends_as_the_tokenizer_declares(
    control: list[str], beside: dict[str, Any], end: str, tmp_path: Path
) -> None:
    assert end_of(kinds.save(kinds.byte_level(control=control), tmp_path / "t", **beside)) == end


def test_a_tag_of_html_in_the_vocabulary_ends_nothing(tmp_path: Path) -> None:
    tokenizer = kinds.byte_level(plain=["<s>", "</s>"], control=["<eos>"])
    assert end_of(kinds.save(tokenizer, tmp_path / "t")) == "<eos>"


def test_berts_separator_ends_a_text_where_there_is_nothing_better(tmp_path: Path) -> None:
    assert end_of(kinds.save(kinds.word_piece(), tmp_path / "t")) == "[SEP]"


def test_the_end_can_be_named(tmp_path: Path) -> None:
    folder = kinds.save(kinds.byte_level(control=LLAMA), tmp_path / "t", tokenizer_config={"eos_token": "<|eot_id|>"})
    assert end_of(folder, eos="<|end_of_text|>") == "<|end_of_text|>"
    with pytest.raises(DataError, match=r"--eos </s>: .* no such token\n.*<\|end_of_text\|>, <\|eot_id\|>"):
        end_of(folder, eos="</s>")


@pytest.mark.parametrize(
    ("control", "beside", "told"),
    [
        (["<eos>", "</s>"], {}, r"</s> and <eos> of tokenizer .* may end a text\n"),
        (["<x>"], {}, r"no end-of-text token that is known: none of <\|endoftext\|>, .*\n.*its control tokens: <x>\n"),
        ([], {}, r"has no control tokens\n  name it: --eos TOKEN"),
        (["<x>"], {"tokenizer_config": {"eos_token": "<y>"}}, r"tokenizer_config.json ends texts by <y>, which is no"),
        (["<x>"], {"tokenizer_config": []}, "no end-of-text token"),
        (["<x>"], {"tokenizer_config": {"eos_token": 3}, GENERATION: {"eos_token_id": [1, 2]}}, "no end-of-text"),
        (["<x>"], {GENERATION: {"eos_token_id": 99_999}}, "no end-of-text token"),
    ],
)
def test_an_end_that_is_not_clear_is_asked_for(
    control: list[str], beside: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        end_of(kinds.save(kinds.byte_level(control=control), tmp_path / "t", **beside))


def test_a_damaged_file_beside_a_tokenizer_is_named(tmp_path: Path) -> None:
    folder = kinds.save(kinds.byte_level(), tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_bytes(b'{"eos_token": "\xff')
    with pytest.raises(DataError, match=r"t/tokenizer_config.json is damaged"):
        end_of(folder)


def test_the_folder_of_a_file_with_another_name_tells_nothing(tmp_path: Path) -> None:
    kinds.save(kinds.byte_level(), tmp_path / "t", tokenizer_config={"eos_token": "</s>"})
    (tmp_path / "t" / "tokenizer.json").rename(tmp_path / "t" / "mine.json")
    assert end_of(str(tmp_path / "t" / "mine.json")) == "<|endoftext|>"


MODELS = [kinds.byte_level(control=QWEN), kinds.unigram(), kinds.word_piece(), kinds.word_level()]


@pytest.mark.parametrize("tokenizer", MODELS, ids=["bpe", "unigram", "wordpiece", "wordlevel"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_text_becomes_a_control_token(tokenizer: Tokenizer, data: st.DataObject) -> None:
    control = control_tokens(tokenizer)
    parts = st.lists(st.sampled_from([*control, " ", "fox", "</s", ">", "\n", "\u00e9"]), max_size=12)
    texts = ["".join(data.draw(parts)) for _ in range(4)]
    unknown = {control[name] for name in ("<unk>", "[UNK]") if name in control}  # it is what is not known
    engine = load_engine(tokenizer_for_texts(tokenizer.to_str(), keep_special=False), name="auto", parallel=False)
    ids = set(engine.encode([text.encode() for text in texts]).ids.tolist())
    assert not ids & (set(control.values()) - unknown)
    counted = ControlCounter(tokenizer).count([text.encode() for text in texts])
    assert (counted > 0).tolist() == [any(token in text for token in control) for text in texts]


def test_control_tokens_can_be_kept() -> None:
    tokenizer = kinds.byte_level(control=QWEN)
    text = tokenizer_for_texts(tokenizer.to_str(), keep_special=True)
    ids = load_engine(text, name="auto", parallel=False).encode([b"a<|im_end|>b"]).ids
    assert tokenizer.token_to_id("<|im_end|>") in ids


def test_text_that_spells_no_control_token_is_encoded_as_before() -> None:
    texts = [text.encode() for text in make_texts()[:50]]
    for tokenizer in MODELS:
        as_text, kept = (tokenizer_for_texts(tokenizer.to_str(), keep_special=keep) for keep in (False, True))
        expected = [tokenizer.encode(text.decode(), add_special_tokens=False).ids for text in texts]
        for one in (as_text, kept):
            engine = load_engine(one, name="tokenizers", parallel=False)
            assert engine.encode(texts).ids.tolist() == [number for ids in expected for number in ids]


def test_a_tokenizer_with_dropout_encodes_a_text_in_one_way() -> None:
    plain, dropping = kinds.byte_level(), kinds.with_dropout(kinds.byte_level(), 0.5)
    texts = [text.encode() for text in kinds.TEXTS]
    expected = load_engine(plain.to_str(), name="tokenizers", parallel=False).encode(texts).ids
    for _ in range(2):
        text = tokenizer_for_texts(dropping.to_str(), keep_special=False)
        assert np.array_equal(load_engine(text, name="auto", parallel=False).encode(texts).ids, expected)


def ask(folder: Path, tokenizer: str, **options: Any) -> Preparation:
    texts = ["A text ends by <|endoftext|> and <|endoftext|>, as one says.", *make_texts(), *kinds.TEXTS]
    corpus = write_jsonl(folder / "corpus.jsonl", texts)
    return Preparation(inputs=(str(corpus),), tokenizer=tokenizer, validation=0.2, **options)


def test_a_dataset_says_how_its_texts_end_and_what_they_spell(tmp_path: Path) -> None:
    folder = kinds.save(kinds.byte_level(), tmp_path / "t")
    for keep_special, name in ((False, "text"), (True, "kept")):
        made, _ = prepare(ask(tmp_path, folder, keep_special=keep_special), tmp_path / name)
        figures = summarize(made)
        assert (figures["end_of_text"], figures["num_control"]) == ("<|endoftext|>", 2)
        num_ends = sum(
            int((Shard(tmp_path / name / shard.path).tokens == made.tokenizer.eos_id).sum())
            for split in made.splits.values()
            for shard in split
        )
        num_documents = sum(made.num_documents(split) for split in made.splits)
        assert num_ends == num_documents + (2 if keep_special else 0)
    assert end_of(str(tmp_path / "text")) == "<|endoftext|>"


def test_a_dataset_from_before_control_tokens_were_text_is_told_apart(tmp_path: Path) -> None:
    folder = kinds.save(kinds.byte_level(), tmp_path / "t")
    prepare(ask(tmp_path, folder, keep_special=True), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del manifest["provenance"]["plan"]["options"]["keep_special"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert not prepare(ask(tmp_path, folder, keep_special=True), tmp_path / "out")[1]
    with pytest.raises(DataError, match=r"options.keep_special was True, is False"):
        prepare(ask(tmp_path, folder), tmp_path / "out")


@pytest.mark.parametrize("tokenizer", [kinds.word_piece(), kinds.word_level()], ids=["wordpiece", "wordlevel"])
def test_a_tokenizer_that_loses_text_is_refused_with_the_share(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = kinds.save(tokenizer, tmp_path / "t")
    with pytest.raises(
        DataError, match=r"loses text: \d+ of \d+ texts do not come back, \d+\.\d% of .*\n.*\n.*--lossy"
    ):
        prepare(ask(tmp_path, folder), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    prepare(ask(tmp_path, folder, lossy=True), tmp_path / "out")
    assert read_manifest(str(tmp_path / "out")).num_documents("train") > 0


def test_loss_is_measured() -> None:
    assert measure_loss(kinds.byte_level().to_str(), ["a \u00e9\u4e2d", "  b  "]).num_lost == 0
    loss = measure_loss(kinds.word_level().to_str(), ["the lazy", "nowhere to be found"])
    assert (loss.num_texts, loss.num_lost) == (2, 1)
    assert loss.unknown == pytest.approx(4 / 6)
