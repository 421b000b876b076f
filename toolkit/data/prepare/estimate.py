"""How large a token dataset will be and what it costs to make, from a small sample of its text."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.data.prepare.engines import load_engine, tokenizer_for_texts
from toolkit.data.prepare.preparation import Preparation, make_plan
from toolkit.data.prepare.spans import weigh
from toolkit.data.prepare.tokenizer import load_tokenizer
from toolkit.data.prepare.writer import SPLITS, Rules
from toolkit.data.text.lines import DAMAGE, measure_expansion
from toolkit.data.text.readers import LINES, PACKED, Piece, kind_of, read_batches
from toolkit.data.text.sources import Input
from toolkit.errors import DataError

_WRITING = 1.3  # measured: hashing, splitting and writing add this to reading and encoding
_QUANTILE = 1.96  # of the normal distribution, for 95 %


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What was found at one place of the corpus; bytes are those of the inputs once unpacked."""

    num_bytes: int
    num_tokens: int
    """With one for the end of each document."""
    num_documents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What to expect; `low` and `high` hold the number of tokens in 95 of 100 cases.

    Of packed files only the beginning is known: the rest is taken to be like it.
    """

    num_tokens: int
    low_tokens: int
    high_tokens: int
    num_documents: int
    num_shards: int
    num_bytes: int
    cpu_hours: float
    sampled_bytes: int
    num_places: int


def estimate_dataset(
    asked: Preparation, *, engine: str, num_places: int, place_bytes: int, rng: np.random.Generator
) -> Estimate:
    """Read a little at many places of a corpus and scale up.

    Args:
        asked: what would be made.
        engine: what encodes.
        num_places: where to look, evenly spread with a random offset in each part.
        place_bytes: how much to read at each.
        rng: chooses the offsets.

    Raises:
        DataError: bad input; no text was found.
    """
    tokenizer = load_tokenizer(asked.tokenizer)
    plan = make_plan(asked, tokenizer=tokenizer)
    encoder = load_engine(
        tokenizer_for_texts(tokenizer.to_str(pretty=False), keep_special=asked.keep_special),
        name=engine, parallel=False,
    )  # fmt: skip
    sizes = [_unpacked_bytes(item, sample_bytes=num_places * place_bytes) for item in plan.inputs]
    if not sum(sizes):
        raise DataError(f"{', '.join(asked.inputs)}: the files are empty\n  give some text")
    reading, encoding = _Meter(), _Meter()
    places = []
    for item, offset in _choose_places(plan.inputs, sizes, num_places=num_places, place_bytes=place_bytes, rng=rng):
        with reading.run():
            texts, num_bytes, read_bytes = _look(item, offset, rules=plan.rules, place_bytes=place_bytes)
        with encoding.run():
            num_tokens = len(encoder.encode(texts).ids) + len(texts)
        reading.num_bytes += read_bytes
        encoding.num_bytes += num_bytes
        places.append(Place(num_bytes=num_bytes, num_tokens=num_tokens, num_documents=len(texts)))
    cpu_s_per_byte = (reading.s_per_byte + encoding.s_per_byte) * _WRITING
    return scale_up(
        places, total_bytes=sum(sizes), num_spans=len(plan.spans), cpu_s_per_byte=cpu_s_per_byte, rules=plan.rules
    )


def scale_up(
    places: Sequence[Place], *, total_bytes: int, num_spans: int, cpu_s_per_byte: float, rules: Rules
) -> Estimate:
    """Estimate totals by the ratio of tokens to bytes.

    Source: Cochran 1977, "Sampling Techniques", chapter 6: the ratio estimator and its variance.
    """
    found = np.array([[place.num_bytes, place.num_tokens, place.num_documents] for place in places], dtype=np.float64)
    sampled, tokens, documents = found.sum(axis=0)
    if not tokens:
        raise DataError("no text was found where the corpus was looked at\n  check --column, or look at more --places")
    ratio = tokens / sampled
    error = _ratio_error(found[:, 1], found[:, 0], ratio)
    num_tokens, num_documents = ratio * total_bytes, documents / sampled * total_bytes
    spread = error * _QUANTILE * total_bytes
    largest = num_tokens / num_spans * max(rules.validation, 1 - rules.validation)
    return Estimate(
        num_tokens=round(num_tokens),
        low_tokens=max(0, round(num_tokens - spread)),
        high_tokens=round(num_tokens + spread),
        num_documents=round(num_documents),
        num_shards=len(SPLITS) * num_spans * math.ceil(largest / rules.tokens_per_shard),  # both splits close at once
        num_bytes=round(num_tokens * np.dtype(rules.dtype).itemsize + num_documents * 4),
        cpu_hours=cpu_s_per_byte * total_bytes / 3600,
        sampled_bytes=round(sampled),
        num_places=len(places),
    )


def _ratio_error(tokens: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], ratio: float) -> float:
    count = len(tokens)
    if count < 2:
        return ratio  # nothing is known of the spread
    squares = float(((tokens - ratio * sizes) ** 2).sum()) / (count * (count - 1))
    return math.sqrt(squares) / float(sizes.mean())


def _unpacked_bytes(item: Input, *, sample_bytes: int) -> int:
    if kind_of(item.path) == PACKED:
        try:
            return round(item.num_bytes * measure_expansion(item.path, sample_bytes=sample_bytes))
        except DAMAGE as error:
            raise DataError(f"{item.path} is cut off or damaged: {error}\n  copy it again") from error
    return weigh(item)


def _choose_places(
    inputs: Sequence[Input], sizes: Sequence[int], *, num_places: int, place_bytes: int, rng: np.random.Generator
) -> Iterator[tuple[Input, int]]:
    """Spread places evenly, at random in their parts; a packed file can only be looked at from its beginning on."""
    ends = np.cumsum(sizes)
    offsets = (np.arange(num_places) + rng.random(num_places)) * ends[-1] / num_places
    looked: dict[int, int] = {}
    for offset in offsets.astype(np.int64):
        number = int(np.searchsorted(ends, offset, side="right"))
        if kind_of(inputs[number].path) == PACKED:
            yield inputs[number], looked.get(number, 0)
            looked[number] = looked.get(number, 0) + place_bytes
        else:
            yield inputs[number], int(offset - (ends[number] - sizes[number]))


def _look(item: Input, offset: int, *, rules: Rules, place_bytes: int) -> tuple[list[bytes], int, int]:
    """Read the documents of a place.

    Returns:
        The texts; the bytes of input that they stand for; the bytes that were read to get them.
    """
    kind = kind_of(item.path)
    if kind == LINES:
        piece = Piece(path=item.path, start=offset, stop=min(item.num_bytes, offset + place_bytes))
        batches = read_batches(piece, reading=rules.reading)
        num_bytes = min(item.num_bytes, offset + place_bytes) - offset
        return [text for batch in batches for text in batch.texts], num_bytes, num_bytes
    if kind == PACKED:
        return _look_into_packed(item.path, offset, rules=rules, place_bytes=place_bytes)
    return _look_at_rows(item, offset, rules=rules, place_bytes=place_bytes)


def _look_into_packed(path: str, offset: int, *, rules: Rules, place_bytes: int) -> tuple[list[bytes], int, int]:
    stop = offset + place_bytes
    texts: list[bytes] = []
    read_bytes = 0
    for batch in read_batches(Piece(path=path), reading=rules.reading):
        texts += [text for text, end in zip(batch.texts, batch.ends, strict=True) if offset < end <= stop]
        read_bytes = batch.end
        if read_bytes >= stop:
            break
    return texts, max(0, min(stop, read_bytes) - offset), read_bytes


def _look_at_rows(item: Input, offset: int, *, rules: Rules, place_bytes: int) -> tuple[list[bytes], int, int]:
    piece, row_bytes = _find_rows(item, offset)
    texts: list[bytes] = []
    num_bytes = read_bytes = 0.0
    for batch in read_batches(piece, reading=rules.reading):
        read_bytes = (batch.end - piece.start) * row_bytes
        for text, end in zip(batch.texts, batch.ends, strict=True):
            if num_bytes < place_bytes:
                texts.append(text)
                num_bytes = (end - piece.start) * row_bytes
        if num_bytes >= place_bytes:
            break
    return texts, round(num_bytes), round(read_bytes)


def _find_rows(item: Input, offset: int) -> tuple[Piece, float]:
    """Find the row group at an offset, and the bytes of one of its rows."""
    row = end = 0
    for num_rows, num_bytes in item.row_groups:
        end += num_bytes
        if offset < end:
            return Piece(path=item.path, start=row, stop=row + num_rows), num_bytes / max(1, num_rows)
        row += num_rows
    return Piece(path=item.path), item.num_bytes / max(1, item.num_rows)


class _Meter:
    """Adds up CPU time."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._cpu_s = 0.0

    @contextmanager
    def run(self) -> Iterator[None]:
        """Count what is done inside."""
        started = time.process_time()
        yield
        self._cpu_s += time.process_time() - started

    @property
    def s_per_byte(self) -> float:
        """Seconds a byte."""
        return self._cpu_s / max(1, self.num_bytes)
