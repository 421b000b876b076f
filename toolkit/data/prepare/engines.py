"""Text to ids: Hugging Face's `tokenizers` is the engine of record, gigatoken the fast one that is held against it."""

import itertools
import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import psutil

from toolkit.data.prepare.control import make_repeatable, spell_out
from toolkit.errors import DataError

log = logging.getLogger(__name__)

AUTO, RECORD, FAST = "auto", "tokenizers", "gigatoken"

_RECORD_BATCH_BYTES = 1 << 20  # it holds about 130 bytes a token (measured)
_CACHE_BYTES = 384 << 20
_FEW_TEXTS, _LONG_TEXT_BYTES = 64, 1 << 10
_ALWAYS_COMPARED_BYTES = 32 << 10
_COMPARED_PART = 1000
_COMPARED_PART_OF_STARTS = 100
_LONGEST_COMPARED = 256 << 10
_PROBES = (  # what tokenizers are known to take differently
    "",
    "The quick brown fox, 3.14159 and 1,000,000!",
    "def f(x):\n\treturn {'a': x ** 2}  # comment\r\n\r\n",
    "   leading, trailing and      inner spaces   \n\n\n\n",
    "it's we'll I'M don't 'S",
    "NUL \0, DEL \x7f, zero width \u200b, no-break \u00a0, line separator \u2028, byte-order mark \ufeff",
    "e\u0301 \u00e9 \ufb01 \u212b \u1e9b\u0323",  # what normalization forms change
    "\u4e2d\u6587\u5b57 \u3042\u3044 \uac00\uac01 \u0627\u0644\u0639 \u05d0 \u0915\u094d\u0937",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44b\U0001f3fd \U0001f1e9\U0001f1ea",
    "a<|endoftext|>b</s>c <s> <unk> [MASK] <pad>",
    "x" * 3000 + " " * 3000 + "=" * 300,
)


class Encoded(NamedTuple):
    """Ids of some texts, end to end."""

    ids: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    """[num_texts + 1]: where each begins."""


class Encoder(Protocol):
    """Turns texts in UTF-8 into ids, without the tokens that a template adds around them."""

    def encode(self, texts: Sequence[bytes]) -> Encoded:
        """Encode texts."""


class Engine(Encoder, Protocol):
    """An encoder that preparation trusts."""

    name: str

    def begin_input(self) -> None:
        """Take note that the texts of another input follow."""


class EnginesDifferError(Exception):
    """The fast engine gave other ids than the engine of record."""


class RecordEngine:
    """The engine of record."""

    name = RECORD

    def __init__(self, tokenizer_json: str) -> None:
        import tokenizers  # deferred: only preparation needs it  # noqa: PLC0415

        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()  # a tokenizer.json may ask for it: text would be lost
        self._tokenizer.no_padding()

    def begin_input(self) -> None:
        """Nothing to do: it is what others are held against."""

    def encode(self, texts: Sequence[bytes]) -> Encoded:
        """Encode texts, some at a time: its results take many times the memory of the text."""
        ids: list[npt.NDArray[np.uint32]] = []
        for batch in _in_batches(texts):
            encodings = self._tokenizer.encode_batch_fast([text.decode() for text in batch], add_special_tokens=False)
            ids += [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        return _join(ids)


class FastEngine:
    """gigatoken; its cache of words grows without end, so it starts anew when it has become large."""

    def __init__(self, tokenizer_json: str, *, parallel: bool) -> None:
        self._json, self._parallel = tokenizer_json, parallel
        self._start()

    def encode(self, texts: Sequence[bytes]) -> Encoded:
        """Encode texts."""
        if _resident_bytes() > self._most_bytes:
            self._start()
        if self._parallel or len(texts) > max(_FEW_TEXTS, sum(map(len, texts)) // _LONG_TEXT_BYTES):
            layout = self._tokenizer.encode_batch(list(texts), parallel=self._parallel).layout
            return Encoded(np.asarray(layout.content.data), np.asarray(layout.offsets.data, dtype=np.int64))
        # As fast for few or long texts, and it does without awkward, which takes 0.3 s to import.
        return _join([self._tokenizer.encode(text) for text in texts])

    def _start(self) -> None:
        import gigatoken  # deferred: only preparation needs it  # noqa: PLC0415

        self._tokenizer = gigatoken.Tokenizer.from_json(self._json)
        self._most_bytes = _resident_bytes() + _CACHE_BYTES


class ComparedEngine:
    """The fast engine with a part of what it does held against the engine of record."""

    name = FAST

    def __init__(self, fast: Encoder, record: Encoder) -> None:
        self._fast, self._record = fast, record
        self._seen_bytes = self._compared_bytes = 0
        self._part = _COMPARED_PART

    def begin_input(self) -> None:
        """Have the next text compared, unless inputs are so small that this would be most of the work."""
        self._part = _COMPARED_PART_OF_STARTS

    def encode(self, texts: Sequence[bytes]) -> Encoded:
        """Encode texts: the first ones are compared, and then about a thousandth.

        Raises:
            EnginesDifferError: ids differ.
        """
        encoded = self._fast.encode(texts)
        for number, text in enumerate(texts):
            if self._compared_bytes <= _ALWAYS_COMPARED_BYTES + self._seen_bytes // self._part:
                self._compare(text, encoded.ids[encoded.offsets[number] : encoded.offsets[number + 1]])
            self._seen_bytes += len(text)
        return encoded

    def _compare(self, text: bytes, ids: npt.NDArray[np.uint32]) -> None:
        if len(text) > _LONGEST_COMPARED:  # of a long text its first part, encoded again by both
            text = text[:_LONGEST_COMPARED].decode(errors="ignore").encode()
            ids = self._fast.encode([text]).ids
        expected = self._record.encode([text]).ids
        self._compared_bytes += len(text)
        self._part = _COMPARED_PART
        if not np.array_equal(ids, expected):
            common = min(len(ids), len(expected))
            first = int(np.argmax(np.append(ids[:common] != expected[:common], True)))
            raise EnginesDifferError(
                f"{FAST} {version(FAST)} and {RECORD} {version(RECORD)} differ from token {first} of a text that "
                f"begins {text[:60].decode(errors='ignore')!r}"
            )


def tokenizer_for_texts(tokenizer_json: str, *, keep_special: bool) -> str:
    """Give the tokenizer as texts are encoded by it: always in the same way, control tokens as text unless kept."""
    repeatable = make_repeatable(tokenizer_json)
    return repeatable if keep_special else spell_out(repeatable)


def load_engine(tokenizer_json: str, *, name: str, parallel: bool) -> Engine:
    """Load an engine: `auto` is gigatoken where it can be compared and agrees on a set of hard texts.

    Args:
        tokenizer_json: the tokenizer.
        name: `auto`, `tokenizers` or `gigatoken`.
        parallel: whether it may use all cores; else it keeps to one thread.

    Raises:
        DataError: gigatoken was asked for and cannot be used.
    """
    if not parallel:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the library has no other switch
    record = RecordEngine(tokenizer_json)
    if name == RECORD:
        return record
    try:
        engine = ComparedEngine(FastEngine(tokenizer_json, parallel=parallel), record)
        for probe in _PROBES:
            engine.encode([probe.encode()])
    except (EnginesDifferError, ImportError, ValueError, NotImplementedError, RuntimeError) as error:
        if name == FAST:
            raise DataError(f"gigatoken cannot stand in for tokenizers: {error}\n  use --engine auto") from error
        log.warning("using tokenizers, which is slower: gigatoken cannot stand in for it (%s)", error)
        return record
    return engine


def _join(ids: Sequence[npt.NDArray[np.uint32]]) -> Encoded:
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return Encoded(np.concatenate(ids) if ids else np.empty(0, np.uint32), offsets)


def _in_batches(texts: Sequence[bytes]) -> list[list[bytes]]:
    ends = itertools.accumulate(map(len, texts))
    numbered = zip(texts, ends, strict=True)
    groups = itertools.groupby(numbered, key=lambda pair: pair[1] // _RECORD_BATCH_BYTES)
    return [[text for text, _ in group] for _, group in groups]


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
