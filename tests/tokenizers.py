"""Tokenizers as people have them, made small: of each kind of model, with the control tokens of well-known families."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [f"The quick brown fox number {n} jumps over the lazy dog. HTML ends <b>so</b>.\n" * 3 for n in range(60)]


def byte_level(*, control: Sequence[str] = ("<|endoftext|>",), plain: Sequence[str] = ()) -> Tokenizer:
    """Make a byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return tokenizer


def unigram() -> Tokenizer:
    """Make a Unigram model whose vocabulary holds its control tokens as pieces (T5)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """Make a lower-case WordPiece (BERT)."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    return tokenizer


def word_level() -> Tokenizer:
    """Make a model of whole words, </s> among them."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, **beside: Any) -> str:
    """Write a tokenizer into a folder, and files beside it: `tokenizer_config={...}`."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, fields in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(fields))
    return str(folder)


def with_dropout(tokenizer: Tokenizer, dropout: float) -> Tokenizer:
    """Have a BPE leave out merges at random."""
    fields = json.loads(tokenizer.to_str())
    fields["model"]["dropout"] = dropout
    return Tokenizer.from_str(json.dumps(fields))
