"""Tokenizers of Hugging Face's `tokenizers`: load one, say which it is, train one."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit import storage
from toolkit.data.manifest import NAME as MANIFEST
from toolkit.data.manifest import TOKENIZER_NAME, TokenizerIdentity
from toolkit.data.prepare.control import Declared, find_end, read_declared
from toolkit.data.text.readers import Piece, Reading, read_batches
from toolkit.data.text.sources import find_inputs
from toolkit.errors import DataError

END_OF_TEXT = "<|endoftext|>"
_BESIDE = (MANIFEST, "tokenizer_config.json", "generation_config.json")


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


def parse_tokenizer(text: str) -> Any:
    """Load a tokenizer from the text of its tokenizer.json."""
    import tokenizers  # deferred: see load_tokenizer  # noqa: PLC0415

    return tokenizers.Tokenizer.from_str(text)


def identify_tokenizer(name: str, tokenizer: Any, *, eos: str | None) -> TokenizerIdentity:
    """Tell which tokenizer it is.

    Args:
        name: where it was loaded from.
        tokenizer: what was loaded.
        eos: the token that ends a text; None: it is found.

    Raises:
        DataError: it cannot end a document, or it is not clear how.
    """
    declared = Declared() if eos is not None else read_declared(_read_beside(name))
    eos_id = find_end(name, tokenizer, declared, asked=eos)
    return TokenizerIdentity(
        name=Path(name).name,
        vocab_size=max(tokenizer.get_vocab().values()) + 1,  # ids may have gaps: what counts is the highest
        eos_id=eos_id,
        sha256=hashlib.sha256(tokenizer.to_str(pretty=False).encode()).hexdigest(),
    )


def _read_beside(name: str) -> dict[str, Any]:
    """Read the files beside a tokenizer.json that tell more of it, as far as there are any."""
    inside = storage.exists(storage.join(name, TOKENIZER_NAME))
    if not inside and not storage.exists(name):
        return {file: _read_from_hub(name, file) for file in _BESIDE[1:]}
    folder, slash, file = name.rpartition("/")
    if not inside and file != TOKENIZER_NAME:
        return {}  # one of several in a folder: what lies there may be another's
    found = {}
    for beside in _BESIDE:
        url = storage.join(name, beside) if inside else f"{folder}{slash}{beside}"
        if storage.exists(url):
            found[beside] = _parse(url, storage.read_file(url))
    return found


def _read_from_hub(name: str, file: str) -> dict[str, Any]:
    # deferred: see load_tokenizer
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return _parse(f"{name}/{file}", Path(hf_hub_download(name, file)).read_bytes())
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return {}


def _parse(where: str, content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}\n  it tells how a text ends\n  get it again") from error
    return fields if isinstance(fields, dict) else {}


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
