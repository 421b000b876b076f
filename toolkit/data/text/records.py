"""Records of a corpus, with all their fields and not the text alone: what a corpus is turned into another from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit import storage
from toolkit.data.text.lines import DAMAGE, open_lines
from toolkit.data.text.sources import read_documents
from toolkit.errors import DataError, StorageError

MAX_RECORD_BYTES = 8 << 20  # such a record costs a filter up to 490 MiB of memory
_LISTED = 100  # skipped records whose reason is kept; all are counted


@dataclass(frozen=True, slots=True)
class Record:
    """One record, and where it stands: `FILE:LINE` or `FILE:row N`."""

    fields: dict[str, Any]
    origin: str


@dataclass(slots=True)
class Skipped:
    """Records that could not be read, with `--on-error skip`."""

    count: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, reason: str) -> None:
        """Count one, and keep its reason while there is room."""
        self.count += 1
        if len(self.reasons) < _LISTED:
            self.reasons.append(reason)


def read_records(name: str, *, column: str, skipped: Skipped | None) -> Iterator[Record]:
    """Read the records of one input, in order; those with an empty text are left out.

    Args:
        name: what `sources.find_inputs` gave. Of text files and `datasets:` names a record has the text alone.
        column: field that holds the text.
        skipped: takes broken records, and the end of a file that is cut off; None: they are errors.

    Raises:
        DataError: a broken record and nothing to take it; a file that is no such file.
    """
    if name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        records = _read_jsonl(name, column, skipped)
    elif name.endswith(".parquet"):
        records = _read_parquet(name, column)
    else:
        documents = read_documents(name, column=column)
        records = (Record({column: document.text}, document.origin) for document in documents)
    for record in records:
        if record.fields[column]:
            yield record


def _read_jsonl(name: str, column: str, skipped: Skipped | None) -> Iterator[Record]:
    number = 0
    try:
        with open_lines(name) as lines:
            for number, line in enumerate(_cut_lines(lines), start=1):
                if not line.strip():
                    continue
                try:
                    yield Record(_parse(line, f"{name}:{number}", column), f"{name}:{number}")
                except DataError as error:
                    if skipped is None:
                        raise
                    skipped.add(str(error).splitlines()[0])
    except DAMAGE as error:
        what = f"{name} is cut off or damaged after line {number}: {error}"
        if skipped is None:
            raise DataError(f"{what}\n  copy it again, or leave its end out: --on-error skip") from error
        skipped.add(what)


def _cut_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Give lines; of one that is too long its beginning alone, so that memory stays bounded."""
    while line := file.readline(MAX_RECORD_BYTES + 1):
        more = len(line) > MAX_RECORD_BYTES
        while more and not line.endswith(b"\n"):
            more = bool(rest := file.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n")
        yield line


def _parse(line: bytes, origin: str, column: str) -> dict[str, Any]:
    if len(line) > MAX_RECORD_BYTES:
        raise DataError(
            f"{origin} is longer than {MAX_RECORD_BYTES >> 20} MiB\n  split the record, or use --on-error skip"
        )
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{origin} is not UTF-8 (byte {error.start} of the line)\n  convert the file, or use --on-error skip"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{origin} is no JSON: {error}\n  each line must be one JSON object\n  correct it, or use --on-error skip"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get(column), str):
        fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{origin} has no text in field {column!r}; it has: {fields}\n  name the field: --column FIELD")
    return record


def _read_parquet(name: str, column: str) -> Iterator[Record]:
    try:
        with storage.open_file(name, "rb") as raw:
            file = pq.ParquetFile(raw)
            if column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(f"{name} has no column {column!r}; it has: {names}\n  name the column: --column NAME")
            row = 0
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    yield Record(fields, f"{name}:row {row}")
                    row += 1
    except (pa.ArrowInvalid, StorageError) as error:
        raise DataError(f"{name} is no Parquet file, or a damaged one: {str(error).splitlines()[0]}") from error
