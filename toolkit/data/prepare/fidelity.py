"""Whether a tokenizer keeps what texts say: a sample is encoded and decoded."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from toolkit.data.prepare.spans import Span
from toolkit.data.prepare.tokenizer import parse_tokenizer
from toolkit.data.text.readers import Reading, read_batches
from toolkit.errors import DataError

log = logging.getLogger(__name__)

_TEXTS = 500
_PLACES = 5  # spans, evenly spread over the inputs
_LONGEST = 10_000  # characters of a text that are looked at
_MOST_LOST = 0.01  # of the texts


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What a tokenizer loses of some texts."""

    num_texts: int
    num_lost: int
    """Texts that do not come back from their ids; blanks at their ends do not count."""
    unknown: float
    """Part of the ids that stand for something unknown."""

    def describe(self) -> str:
        """Say it in words."""
        return (
            f"{self.num_lost} of {self.num_texts} texts do not come back, {self.unknown:.1%} of the tokens are unknown"
        )


def sample_texts(spans: Sequence[Span], reading: Reading) -> list[str]:
    """Read the first texts of some parts of the inputs."""
    num_places = min(_PLACES, len(spans))
    texts: list[str] = []
    for place in range(num_places):
        texts += islice(_read_texts(spans[len(spans) * place // num_places], reading), _TEXTS // num_places)
    return texts


def _read_texts(span: Span, reading: Reading) -> Iterable[str]:
    for piece in span.pieces:
        for batch in read_batches(piece, reading=reading, resume=None):
            yield from (text.decode()[:_LONGEST] for text in batch.texts)


def measure_loss(tokenizer_json: str, texts: Sequence[str]) -> Loss:
    """Encode texts and decode them again."""
    tokenizer = parse_tokenizer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = json.loads(tokenizer_json)["model"]
    unknown_id = model.get("unk_id") if "unk_id" in model else tokenizer.token_to_id(model.get("unk_token") or "")
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    decoded = tokenizer.decode_batch(encoded, skip_special_tokens=False)
    num_lost = sum(text.strip() != back.strip() for text, back in zip(texts, decoded, strict=True))
    num_unknown = 0 if unknown_id is None else sum(ids.count(unknown_id) for ids in encoded)
    return Loss(num_texts=len(texts), num_lost=num_lost, unknown=num_unknown / max(1, sum(map(len, encoded))))


def refuse_loss(loss: Loss, *, name: str, is_accepted: bool) -> None:
    """Refuse a tokenizer that loses text, unless that is accepted.

    Raises:
        DataError: more than a hundredth of the texts does not come back.
    """
    if loss.num_lost <= _MOST_LOST * loss.num_texts or is_accepted:
        if loss.num_lost:
            log.warning("tokenizer %s loses text: %s", name, loss.describe())
        return
    raise DataError(
        f"tokenizer {name} loses text: {loss.describe()}\n"
        "  a model never sees what its tokenizer leaves out or changes (letters, case, blanks)\n"
        "  take another tokenizer, or accept it: --lossy"
    )
