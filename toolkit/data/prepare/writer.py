"""One span -> its shards, with a record after each shard from which a killed process goes on."""

import bisect
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import numpy.typing as npt
import xxhash

from toolkit import storage
from toolkit.data.manifest import ShardEntry
from toolkit.data.prepare.control import ControlCounter
from toolkit.data.prepare.engines import Encoded, Engine
from toolkit.data.prepare.spans import Span
from toolkit.data.shard import Tokens, write_tokens
from toolkit.data.text.readers import Batch, Piece, Reading, Skipped, read_batches
from toolkit.errors import DataError
from toolkit.fields import build

SPLITS = ("train", "validation")
RECORDS = "records"

_COUNTED = 1 << 20  # numpy makes int64 of them
_LISTED = 100  # skipped records of a span that are listed; all are counted

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How texts become shards."""

    reading: Reading
    validation: float
    split_by: str
    tokens_per_shard: int
    vocab_size: int
    eos_id: int

    @property
    def dtype(self) -> str:
        """The smallest type that holds every id."""
        return "uint16" if self.vocab_size <= 2**16 else "uint32"


@dataclass(kw_only=True, slots=True)
class Record:
    """What is done of a span, and where to go on: a function of the inputs and rules alone."""

    span: int
    engine: str
    """The fast one, if it had any part in it."""
    is_done: bool = False
    piece: int = 0
    place: int | None = None
    """Where reading goes on, in the piece; None: at its beginning."""
    shards: dict[str, list[ShardEntry]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    num_closings: int = 0
    num_documents: int = 0
    num_text_bytes: int = 0
    text_xxh3: str = ""
    """Chained over the texts as they were read, a shard at a time."""
    num_control: int = 0
    """Control tokens that the texts spell out."""
    num_empty: int = 0
    num_skipped: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def write_record(partial_dir: str, record: Record, counts: Counts) -> None:
    """Put a record in the place of the former one; its counts lie beside, for most readers do without."""
    storage.write_atomic(_counts_url(partial_dir, record), zlib.compress(counts.astype("<i8").tobytes(), 1))
    storage.write_atomic(_record_url(partial_dir, record.span), json.dumps(asdict(record)).encode())
    if record.num_closings > 1:
        storage.remove_tree(_counts_url(partial_dir, replace(record, num_closings=record.num_closings - 1)))


def read_record(partial_dir: str, span: int) -> Record | None:
    """Read the record of a span; None where it has not closed a shard yet."""
    try:
        with storage.open_file(_record_url(partial_dir, span), "rb") as file:
            record: Record = build(Record, json.loads(file.read()))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{_record_url(partial_dir, span)} is damaged: {error}\n  it says how far a span is\n"
            "  delete it, and start the same command again"
        ) from error
    if not all(storage.is_inner(entry.path) for entries in record.shards.values() for entry in entries):
        raise DataError(f"{_record_url(partial_dir, span)} names a shard outside of {partial_dir}\n  delete it")
    return record


def forget_record(partial_dir: str, span: int) -> None:
    """Have a span begun again."""
    storage.remove_tree(_record_url(partial_dir, span))


def read_counts(partial_dir: str, record: Record, *, vocab_size: int) -> Counts:
    """Read how often each id occurs in each split: int64 [split, vocab_size]."""
    if not record.num_closings:
        return np.zeros((len(SPLITS), vocab_size), dtype=np.int64)
    with storage.open_file(_counts_url(partial_dir, record), "rb") as file:
        return np.frombuffer(zlib.decompress(file.read()), dtype="<i8").reshape(len(SPLITS), vocab_size)


def _record_url(partial_dir: str, span: int) -> str:
    return storage.join(partial_dir, RECORDS, f"{span:06d}.json")


def _counts_url(partial_dir: str, record: Record) -> str:
    return storage.join(partial_dir, RECORDS, f"{record.span:06d}-{record.num_closings:05d}.counts")


def write_span(
    partial_dir: str,
    span: Span,
    record: Record,
    *,
    rules: Rules,
    engine: Engine,
    control: ControlCounter,
    report: Callable[[int], None],
) -> Record:
    """Write the shards of a span from where its record ends.

    Args:
        partial_dir: directory of the unfinished dataset.
        span: what to read.
        record: where to begin.
        rules: how texts become shards.
        engine: what encodes.
        control: counts the control tokens in texts.
        report: told the bytes of text of each batch.

    Returns:
        The record of the whole span, as it was written.

    Raises:
        DataError: bad input.
        EnginesDifferError: from the engine.
    """
    writer = _SpanWriter(partial_dir, record, rules)
    for number, piece in list(enumerate(span.pieces))[record.piece :]:
        resume = record.place if number == record.piece else None
        if piece.start == 0:
            engine.begin_input()
        for batch in read_batches(piece, reading=rules.reading, resume=resume):
            writer.add(number, piece, batch, engine.encode(batch.texts), control.count(batch.texts))
            report(sum(map(len, batch.texts)))
        writer.go_to(number + 1, None)
    writer.close(is_last=True)
    return record


class _SpanWriter:
    """Advances a record with each document, and stores it with each closing of shards."""

    def __init__(self, partial_dir: str, record: Record, rules: Rules) -> None:
        self._partial_dir, self._record, self._rules = partial_dir, record, rules
        self._pending = {split: _Pending(rules.tokens_per_shard, rules.dtype) for split in SPLITS}
        self._counts = read_counts(partial_dir, record, vocab_size=rules.vocab_size).copy()
        self._digest = xxhash.xxh3_128(record.text_xxh3.encode())

    def go_to(self, piece: int, place: int | None) -> None:
        """Note up to where all is added."""
        self._record.piece, self._record.place = piece, place

    def add(self, number: int, piece: Piece, batch: Batch, encoded: Encoded, num_control: Counts) -> None:
        """Add what a batch holds, closing shards as they fill; `num_control` counts control tokens by document."""
        self._check_ids(piece, batch, encoded)
        hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, batch.texts), dtype=np.uint64, count=len(batch.texts))
        documents = _Documents(encoded, self._choose_validation(hashes), eos_id=self._rules.eos_id)
        empty, skipped = sorted(batch.empty), sorted(batch.skipped, key=lambda broken: broken.place)
        first = 0
        while first < len(hashes):
            last = self._find_last(documents, first)
            if last > first:
                for split in SPLITS:
                    self._pending[split].add(*documents.part(split, first, last))
                self._digest.update(hashes[first:last].tobytes())
                self._record.num_documents += last - first
                self._record.num_control += int(num_control[first:last].sum())
                self._record.num_text_bytes += sum(map(len, batch.texts[first:last]))
                place = batch.ends[last - 1]
                self._count_missed(empty, skipped, before=place)
                self.go_to(number, place)
            first = last
            if first < len(hashes):
                self.close(is_last=False)
        self._count_missed(empty, skipped, before=None)
        self.go_to(number, batch.end)

    def close(self, *, is_last: bool) -> None:
        """Write the shards that are pending, of both splits: so the record's one place is right for both."""
        record = self._record
        for number, (split, pending) in enumerate(self._pending.items()):
            if not pending.num_tokens:
                continue
            name = f"{split}/{record.span:06d}-{len(record.shards[split]):05d}.arrow"
            tokens, offsets = pending.tokens, pending.offsets
            entry = write_tokens(storage.join(self._partial_dir, name), tokens, offsets, name=name)
            record.shards[split].append(entry)
            for first in range(0, len(tokens), _COUNTED):
                counted = np.bincount(tokens[first : first + _COUNTED], minlength=self._rules.vocab_size)
                self._counts[number] += counted
            pending.clear()
        record.text_xxh3 = self._digest.hexdigest()
        self._digest = xxhash.xxh3_128(record.text_xxh3.encode())
        record.is_done = is_last
        record.num_closings += 1
        write_record(self._partial_dir, record, self._counts)

    def _check_ids(self, piece: Piece, batch: Batch, encoded: Encoded) -> None:
        if len(encoded.ids) and encoded.ids.max() >= self._rules.vocab_size:
            place = int(np.argmax(encoded.ids >= self._rules.vocab_size))
            document = int(np.searchsorted(encoded.offsets, place, side="right")) - 1
            raise DataError(
                f"{piece.path}: the document before {batch.ends[document]} has token id {encoded.ids[place]}\n"
                f"  the tokenizer has {self._rules.vocab_size} ids\n  its tokenizer.json is damaged: get it again"
            )

    def _choose_validation(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Choose by the hash of a text, or by its number in the span."""
        if self._rules.split_by == "hash":
            chosen: npt.NDArray[np.bool_] = hashes < np.uint64(int(self._rules.validation * 2**64))
            return chosen
        numbers = self._record.num_documents + np.arange(len(hashes))
        chosen = numbers % max(1, round(1 / self._rules.validation)) == 0
        return chosen

    def _find_last(self, documents: "_Documents", first: int) -> int:
        """Find how many documents go into the shards at hand: a shard takes one at least, then up to its limit."""
        last = len(documents.lengths)
        for split, pending in self._pending.items():
            sizes = np.cumsum(np.where(documents.is_in(split), documents.lengths, 0)[first:])
            fitting = int(np.searchsorted(sizes, self._rules.tokens_per_shard - pending.num_tokens, side="right"))
            if not pending.num_tokens and sizes[-1]:
                fitting = max(fitting, int(np.argmax(sizes > 0)) + 1)
            last = min(last, first + fitting)
        return last

    def _count_missed(self, empty: list[int], skipped: list[Skipped], *, before: int | None) -> None:
        """Count, and take out of the lists, what lies before a place; None: all."""
        record = self._record
        num_empty = len(empty) if before is None else bisect.bisect_left(empty, before)
        num_skipped = (
            len(skipped) if before is None else bisect.bisect_left(skipped, before, key=lambda broken: broken.place)
        )
        record.num_empty += num_empty
        record.num_skipped += num_skipped
        record.skipped += skipped[:num_skipped][: _LISTED - len(record.skipped)]
        del empty[:num_empty], skipped[:num_skipped]


class _Documents:
    """The documents of a batch, each with its end-of-text token."""

    def __init__(self, encoded: Encoded, is_validation: npt.NDArray[np.bool_], *, eos_id: int) -> None:
        self.lengths = np.diff(encoded.offsets) + 1
        self._tokens = np.insert(encoded.ids, encoded.offsets[1:], eos_id)
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self._is_validation = is_validation

    def is_in(self, split: str) -> npt.NDArray[np.bool_]:
        """Tell of each document whether it is in a split."""
        return self._is_validation if split == "validation" else ~self._is_validation

    def part(self, split: str, first: int, last: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Give the tokens and lengths of those of documents [first, last) that are in a split."""
        chosen, lengths = self.is_in(split)[first:last], self.lengths[first:last]
        tokens = self._tokens[self._offsets[first] : self._offsets[last]]
        return (tokens, lengths) if chosen.all() else (tokens[np.repeat(chosen, lengths)], lengths[chosen])


class _Pending:
    """A shard in work: its memory is taken as it fills, and used again for the next."""

    def __init__(self, capacity: int, dtype: str) -> None:
        self._buffer: Tokens = np.empty(capacity, dtype=dtype)
        self.clear()

    def clear(self) -> None:
        """Begin another shard."""
        self.num_tokens = 0
        self._lengths: list[npt.NDArray[np.int64]] = []

    def add(self, tokens: npt.NDArray[np.uint32], lengths: npt.NDArray[np.int64]) -> None:
        """Append documents."""
        end = self.num_tokens + len(tokens)
        if end > len(self._buffer):  # one document larger than a shard
            self._buffer = np.concatenate([self.tokens, np.empty(len(tokens), self._buffer.dtype)])
        self._buffer[self.num_tokens : end] = tokens
        self._lengths.append(lengths)
        self.num_tokens = end

    @property
    def tokens(self) -> Tokens:
        """What was added."""
        return self._buffer[: self.num_tokens]

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where its documents begin, and the end."""
        return np.cumsum(np.concatenate([[0], *self._lengths]))
