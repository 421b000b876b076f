"""Texts out of a part of an input, in batches that say where to go on: JSONL (also .gz, .zst), Parquet, text, rows."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit import storage
from toolkit.data.text import hub
from toolkit.data.text.lines import DAMAGE, name_line, read_blocks
from toolkit.errors import DataError, StorageError

LINES, PACKED, ROWS, TEXT, HUB = "lines", "packed lines", "rows", "text", "hub"
SUFFIXES = {
    ".jsonl": LINES,
    ".jsonl.gz": PACKED,
    ".jsonl.zst": PACKED,
    ".parquet": ROWS,
    ".txt": TEXT,
    ".md": TEXT,
    ".rst": TEXT,
}
_BATCH_BYTES = 8 << 20
_HUB_ROWS = 256


def kind_of(name: str) -> str | None:
    """Tell how an input is read; None: not at all."""
    if name.startswith(hub.PREFIX):
        return HUB
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of one input that can be read on its own.

    Places in an input are bytes of JSONL (of what is unpacked), rows of Parquet and datasets; a text file is
    one row. A record belongs to the piece in which its first byte lies.
    """

    path: str
    start: int = 0
    stop: int | None = None
    """None: to the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What to read of records, and what becomes of broken ones."""

    column: str
    on_error: str = "stop"
    """`stop`: the first broken record is an error; `skip`: it is left out and reported."""
    max_record_bytes: int = 8 << 20
    """Longer ones count as broken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A broken record that was left out."""

    path: str
    place: int
    reason: str


@dataclass(slots=True)
class Batch:
    """Some texts in UTF-8, each with the place behind it, where reading can go on."""

    end: int
    """The place behind the batch."""
    texts: list[bytes] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    """Places of records with an empty text; they are left out."""
    skipped: list[Skipped] = field(default_factory=list)


class DamagedError(DataError):
    """A packed file is damaged: what was read of it before may be wrong too."""


class _BrokenError(Exception):
    """A record cannot be read; `args` are the reason and the remedy."""


def read_batches(piece: Piece, *, reading: Reading, resume: int | None = None) -> Iterator[Batch]:
    """Read a piece, in order.

    Args:
        piece: what to read.
        reading: how.
        resume: a place that an earlier reading gave; None: from the beginning of the piece.

    Raises:
        DataError: a broken record or file with `on_error="stop"`; says where.
    """
    kind = kind_of(piece.path)
    assert kind is not None, f"{piece.path} was not found by find_inputs"
    return _READERS[kind](piece, reading, resume)


def _read_lines(piece: Piece, reading: Reading, resume: int | None) -> Iterator[Batch]:
    record = msgspec.defstruct("Record", [("text", str, msgspec.field(name=reading.column))])
    decode = msgspec.json.Decoder(record).decode
    end = piece.start if resume is None else resume
    blocks = read_blocks(piece.path, start=piece.start, stop=piece.stop, resume=resume, limit=reading.max_record_bytes)
    try:
        for start, block, end in blocks:
            lines = block.split(b"\n")
            if not lines[-1]:
                lines.pop()
            places = list(itertools.accumulate((len(line) + 1 for line in lines), initial=start))
            places[-1] = end
            try:
                texts = [decode(line).text.encode() for line in lines]  # type: ignore[attr-defined]
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                texts = []  # something in the block is broken or blank
            if texts and all(texts) and max(map(len, lines)) <= reading.max_record_bytes:
                yield Batch(end, texts, places[1:])
            else:
                yield _read_one_by_one(piece, reading, decode, lines, places)
    except DAMAGE as error:
        reason = f"is cut off or damaged after byte {end} of what it unpacks to: {error}"
        if reading.on_error == "stop":
            remedy = "copy it again, or use what is good of it: --on-error skip"
            raise DamagedError(f"{piece.path} {reason}\n  {remedy}") from error
        yield Batch(end, skipped=[Skipped(path=piece.path, place=end, reason=reason)])


def _read_one_by_one(
    piece: Piece, reading: Reading, decode: Callable[[bytes], Any], lines: list[bytes], places: list[int]
) -> Batch:
    batch = Batch(places[-1])
    for line, start, end in zip(lines, places[:-1], places[1:], strict=True):
        if not line.strip():
            continue
        try:
            text = _parse(line, decode, reading)
        except _BrokenError as error:
            where = name_line(piece.path, start) if reading.on_error == "stop" else ""
            batch.skipped.append(_skip(piece, start, reading, *error.args, where=where))
            continue
        if text:
            batch.texts.append(text)
            batch.ends.append(end)
        else:
            batch.empty.append(start)
    return batch


def _parse(line: bytes, decode: Callable[[bytes], Any], reading: Reading) -> bytes:
    """Read one record; what msgspec does not take (NaN, a byte-order mark) Python's parser may."""
    if len(line) > reading.max_record_bytes:
        raise _BrokenError(
            f"is longer than {reading.max_record_bytes:,} bytes", "raise --max-record-bytes (memory grows with it)"
        )
    try:
        try:
            text: str = decode(line).text
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get(reading.column), str):
                fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                reason = f"has no text in field {reading.column!r}; it has: {fields}"
                raise _BrokenError(reason, "name the field: --column FIELD") from None
            text = record[reading.column]
        return text.encode()
    except UnicodeDecodeError as error:
        raise _BrokenError(f"is not UTF-8 (byte {error.start} of the line)", "convert the file") from error
    except UnicodeEncodeError as error:
        reason = f"has half of a surrogate pair (character {error.start} of the text), which no UTF-8 can hold"
        raise _BrokenError(reason, "make the file again") from error
    except RecursionError as error:
        raise _BrokenError("is nested too deeply", "flatten the record") from error
    except ValueError as error:
        raise _BrokenError(f"is no JSON: {error}", "each line must be one JSON object") from error


def _skip(piece: Piece, place: int, reading: Reading, reason: str, remedy: str, *, where: str) -> Skipped:
    if reading.on_error == "stop":
        raise DataError(f"{where} {reason}\n  {remedy}\n  or leave out what is broken: --on-error skip")
    return Skipped(path=piece.path, place=place, reason=reason)


def _read_rows(piece: Piece, reading: Reading, resume: int | None) -> Iterator[Batch]:
    row = piece.start if resume is None else resume
    try:
        with storage.open_file(piece.path, "rb") as raw:
            file = pq.ParquetFile(raw)
            _check_column(piece.path, file.schema_arrow, reading.column)
            for first, column in _row_groups(file, piece, reading.column, resume or 0):
                row = first
                yield _take_rows(piece, reading, column, first, resume or 0)
    except (pa.ArrowException, OSError, StorageError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = f"is no Parquet file, or a damaged one, after row {row}: {str(error).splitlines()[0]}"
        yield Batch(row, skipped=[_skip(piece, row, reading, reason, "copy it again", where=piece.path)])


def _check_column(path: str, schema: Any, column: str) -> None:
    if column not in schema.names:
        raise DataError(
            f"{path} has no column {column!r}; it has: {', '.join(schema.names)}\n  name the column: --column NAME"
        )
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_kind(value) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise DataError(f"{path}: column {column!r} is {kind}, not text\n  name the column: --column NAME")


def _row_groups(file: Any, piece: Piece, column: str, resume: int) -> Iterator[tuple[int, Any]]:
    """Give columns of some rows each, in the same steps wherever reading goes on: so damage is met alike."""
    group_start = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        first, group_start = group_start, group_start + group.num_rows
        if group_start <= max(piece.start, resume) or (piece.stop is not None and first >= piece.stop):
            continue
        rows = max(1, min(group.num_rows, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
        for batch in file.iter_batches(batch_size=rows, row_groups=[number], columns=[column], use_threads=False):
            yield first, batch.column(0)
            first += batch.num_rows


def _take_rows(piece: Piece, reading: Reading, column: Any, first: int, resume: int) -> Batch:
    batch = Batch(first + len(column))
    for row, text in enumerate(column.cast(pa.large_binary()).to_pylist(), start=first):
        if row < resume:
            continue
        reason = _find_fault(text, reading)
        if reason is not None:
            batch.skipped.append(_skip(piece, row, reading, *reason, where=f"{piece.path}:row {row}"))
        elif text:
            batch.texts.append(text)
            batch.ends.append(row + 1)
        else:
            batch.empty.append(row)
    return batch


def _find_fault(text: bytes | None, reading: Reading) -> tuple[str, str] | None:
    if text is None:
        return None
    if len(text) > reading.max_record_bytes:
        remedy = "raise --max-record-bytes (memory grows with it)"
        return f"is longer than {reading.max_record_bytes:,} bytes", remedy
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start})", "convert the file"
    return None


def _read_text(piece: Piece, reading: Reading, resume: int | None) -> Iterator[Batch]:
    if resume:
        return
    with storage.open_file(piece.path, "rb") as file:
        text = file.read(reading.max_record_bytes + 1)
    fault = _find_fault(text, reading)
    if fault is not None:
        yield Batch(1, skipped=[_skip(piece, 0, reading, *fault, where=piece.path)])
    else:
        yield Batch(1, [text], [1]) if text else Batch(1, empty=[0])


def _read_hub(piece: Piece, reading: Reading, resume: int | None) -> Iterator[Batch]:
    rows = hub.open_rows(piece.path, column=reading.column)
    for first in range(resume or 0, len(rows), _HUB_ROWS):
        texts = rows[first : first + _HUB_ROWS][reading.column]
        column = pa.array(texts, type=pa.large_string())
        yield _take_rows(piece, reading, column, first, first)


_READERS = {LINES: _read_lines, PACKED: _read_lines, ROWS: _read_rows, TEXT: _read_text, HUB: _read_hub}
