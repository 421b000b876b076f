"""Control tokens of a tokenizer: which one ends a text, and how those that a text spells out stay text.

Source: the file format of Hugging Face's `tokenizers` 0.23; `added_tokens` are cut out of a text before the model sees
it, and the model takes a piece of its vocabulary wherever a text holds it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.errors import DataError

_ENDS_OF_TEXTS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<|eos|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
_ENDS_OF_PARTS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "[SEP]")
"""Of turns and sentences: they end a text where a tokenizer has nothing better."""
_LISTED = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """What the files beside a tokenizer.json say of the end of a text."""

    token: str | None = None
    token_id: int | None = None
    source: str = ""
    """Which of them."""


def read_declared(files: Mapping[str, Mapping[str, Any]]) -> Declared:
    """Take the end of a text from the files beside a tokenizer, by their names; the first that tells it counts."""
    manifest, config, generation = (
        files.get(name, {}) for name in ("manifest.json", "tokenizer_config.json", "generation_config.json")
    )
    made_with = manifest.get("tokenizer")
    if isinstance(made_with, dict) and isinstance(made_with.get("eos_id"), int):
        return Declared(token_id=made_with["eos_id"], source="manifest.json")
    token = config.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str) and token:
        return Declared(token=token, source="tokenizer_config.json")
    ids = generation.get("eos_token_id")
    if isinstance(ids, list) and len(ids) == 1:
        [ids] = ids
    return Declared(token_id=ids, source="generation_config.json") if isinstance(ids, int) else Declared()


def find_end(name: str, tokenizer: Any, declared: Declared, *, asked: str | None) -> int:
    """Find the token that ends a text.

    Args:
        name: of the tokenizer, for messages.
        tokenizer: of `tokenizers`.
        declared: what the files beside it say.
        asked: the token that the user names; None: it is found.

    Raises:
        DataError: it is not in the vocabulary, or it is not clear which one it is.
    """
    if asked is not None:
        return _look_up(tokenizer, asked, f"--eos {asked}: tokenizer {name} has no such token")
    if declared.token is not None:
        what = f"tokenizer {name}: its {declared.source} ends texts by {declared.token}, which is no token of it"
        return _look_up(tokenizer, declared.token, what)
    if declared.token_id is not None and tokenizer.id_to_token(declared.token_id) is not None:
        return declared.token_id
    control = control_tokens(tokenizer)
    for known in (_ENDS_OF_TEXTS, _ENDS_OF_PARTS):
        found = [token for token in known if token in control]
        if len(found) == 1:
            return control[found[0]]
        if found:
            break
    what = f"{' and '.join(found)} of tokenizer {name} may end a text" if found else _say_nothing_known(name)
    raise DataError(f"{what}\n  a text ends by one token{_list(found or control)}\n  name it: --eos TOKEN")


def _look_up(tokenizer: Any, token: str, what: str) -> int:
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        raise DataError(f"{what}\n  a text ends by a token{_list(control_tokens(tokenizer))}\n  name one: --eos TOKEN")
    return token_id


def _say_nothing_known(name: str) -> str:
    known = ", ".join((*_ENDS_OF_TEXTS, *_ENDS_OF_PARTS))
    return f"tokenizer {name} has no end-of-text token that is known: none of {known}"


def _list(tokens: Sequence[str] | Mapping[str, int]) -> str:
    shown = ", ".join(list(tokens)[:_LISTED])
    more = f" and {len(tokens) - _LISTED} more" if len(tokens) > _LISTED else ""
    return f"; its control tokens: {shown}{more}" if tokens else "; it has no control tokens"


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Give the ids of the control tokens of a tokenizer by their texts; other added tokens are text."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in sorted(added.items()) if token.special}


def spell_out(tokenizer_json: str) -> str:
    """Change a tokenizer so that no text becomes a control token: what spells one is encoded like other text."""
    fields = json.loads(tokenizer_json)
    control = {token["content"] for token in fields.get("added_tokens", []) if token["special"]}
    fields["added_tokens"] = [token for token in fields["added_tokens"] if not token["special"]]
    model = fields["model"]
    if isinstance(model.get("vocab"), list):  # Unigram
        model["vocab"] = [[_hide(piece, control), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {_hide(piece, control): number for piece, number in model["vocab"].items()}
    if model.get("unk_token"):
        model["unk_token"] = _hide(model["unk_token"], control)
    return json.dumps(fields)


def _hide(piece: str, control: set[str]) -> str:
    """Give a control token a name that no text holds: U+FDD0 is for a program's own use and no character."""
    return f"\ufdd0{piece}\ufdd0" if piece in control else piece


def make_repeatable(tokenizer_json: str) -> str:
    """Leave out what makes a tokenizer encode a text in another way each time: the dropout of merges."""
    fields = json.loads(tokenizer_json)
    if not fields["model"].get("dropout"):
        return tokenizer_json
    fields["model"]["dropout"] = None
    return json.dumps(fields)


class ControlCounter:
    """Counts the control tokens that texts spell out."""

    def __init__(self, tokenizer: Any) -> None:
        tokens = sorted((token.encode() for token in control_tokens(tokenizer)), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, tokens)))
        self._beginnings = sorted({token[:2] for token in tokens})

    def count(self, texts: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Count those in each text (UTF-8)."""
        return np.fromiter((self._count(text) for text in texts), np.int64, len(texts))

    def _count(self, text: bytes) -> int:
        # most texts hold not even a beginning, and to search for two bytes is 100 times as fast
        if not any(beginning in text for beginning in self._beginnings):
            return 0
        return len(self._pattern.findall(text))
