"""Tokenizers of Hugging Face's `tokenizers`: load one, say which it is, train one."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit import storage
from toolkit.data.manifest import TOKENIZER_NAME, TokenizerIdentity
from toolkit.data.text.readers import Piece, Reading, read_batches
from toolkit.data.text.sources import find_inputs
from toolkit.errors import DataError

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer: a tokenizer.json or a directory with one, at any URL, or a name on the Hub.

    Raises:
        DataError: it cannot be had.
    """
    import tokenizers  # deferred: only preparation and sampling need it  # noqa: PLC0415

    inside = storage.join(name, TOKENIZER_NAME)
    path = inside if storage.exists(inside) else name
    try:
        if storage.exists(path):
            with storage.open_file(path, "rb") as file:
                return tokenizers.Tokenizer.from_buffer(file.read())
        return tokenizers.Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises plain Exception
        raise DataError(
            f"tokenizer {name} cannot be loaded: {str(error).splitlines()[0]}\n"
            "  it must be a tokenizer.json, a directory with one, or a name on the Hub\n"
            "  make one: python data_prep/train_tokenizer.py TEXT --vocab-size 4096 --out tokenizer.json"
        ) from error


def identify_tokenizer(name: str, tokenizer: Any) -> TokenizerIdentity:
    """Tell which tokenizer it is.

    Raises:
        DataError: it cannot end a document.
    """
    eos_ids = [tokenizer.token_to_id(token) for token in (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")]
    eos_id = next((token_id for token_id in eos_ids if token_id is not None), None)
    if eos_id is None:
        raise DataError(f"tokenizer {name} has no end-of-text token\n  one of {END_OF_TEXT}, </s> must be in it")
    return TokenizerIdentity(
        name=Path(name).name,
        vocab_size=max(tokenizer.get_vocab().values()) + 1,  # ids may have gaps: what counts is the highest
        eos_id=eos_id,
        sha256=hashlib.sha256(tokenizer.to_str(pretty=False).encode()).hexdigest(),
    )


def train_tokenizer(
    inputs: Sequence[str],
    *,
    column: str,
    vocab_size: int,
    path: Path,
    on_error: str = "stop",
    max_record_bytes: int = 8 << 20,
) -> int:
    """Train a byte-level BPE on texts, write it, and give its real vocabulary size.

    Source: Radford et al. 2019 (GPT-2), byte-level BPE.
    """
    import tokenizers  # deferred: see load_tokenizer  # noqa: PLC0415
    from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    names = find_inputs(inputs)
    reading = Reading(column=column, on_error=on_error, max_record_bytes=max_record_bytes)
    batches = (batch for name in names for batch in read_batches(Piece(path=name), reading=reading))
    texts = (text.decode() for batch in batches for text in batch.texts)
    tokenizer.train_from_iterator(texts, trainer)
    storage.write_atomic(str(path), tokenizer.to_str(pretty=False).encode())
    return int(tokenizer.get_vocab_size())
