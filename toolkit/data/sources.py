"""Documents out of JSONL (also .gz, .zst), Parquet, text files and Hugging Face datasets."""

import gzip
import io
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from toolkit import storage
from toolkit.errors import DataError, StorageError

log = logging.getLogger(__name__)

HUB_PREFIX = "datasets:"


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it stands: `FILE:LINE`, `FILE:row N`, or a file."""

    text: str
    origin: str


def find_inputs(names: list[str]) -> list[str]:
    """Expand directories to the files below them; keep files and `datasets:` names as they are.

    Raises:
        DataError: a name leads to nothing.
    """
    found: list[str] = []
    for name in names:
        if name.startswith(HUB_PREFIX):
            found.append(name)
            continue
        files = [file for file in storage.list_files(name) if _reader(file)] if storage.exists(name) else []
        if not files:
            known = ", ".join(suffix for suffix, _ in _READERS)
            raise DataError(
                f"{name}: no text found\n  a file or directory with {known}, or datasets:NAME\n  check the path"
            )
        found.extend(files)
    return found


def read_documents(name: str, *, column: str) -> Iterator[Document]:
    """Read the documents of one input, in order; empty ones are left out.

    Args:
        name: a file, or `datasets:NAME[:CONFIG[:SPLIT]]`.
        column: field of a record that holds the text.

    Raises:
        DataError: broken record, missing column, wrong encoding, truncated file; with file and line.
    """
    read = _read_hub if name.startswith(HUB_PREFIX) else _reader(name)
    assert read is not None, f"{name} was not found by find_inputs"
    for document in read(name, column):
        if document.text:
            yield document


def _read_jsonl(name: str, column: str) -> Iterator[Document]:
    line_number = 0
    try:
        with open_lines(name) as lines:
            for line_number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse(line, f"{name}:{line_number}", column)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{name} is cut off or damaged after line {line_number}: {error}\n  copy it again") from error


def _parse(line: bytes, origin: str, column: str) -> Document:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{origin} is not UTF-8 (byte {error.start} of the line)\n  convert the file") from error
    except ValueError as error:
        raise DataError(f"{origin} is no JSON: {error}\n  each line must be one JSON object") from error
    if not isinstance(record, dict) or not isinstance(record.get(column), str):
        fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{origin} has no text in field {column!r}; it has: {fields}\n  name the field: --column FIELD")
    return Document(record[column], origin)


def open_lines(name: str) -> IO[bytes]:
    """Open a text file, unpacked on the way when its name ends with .gz or .zst."""
    raw = storage.open_file(name, "rb")
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if name.endswith(".zst"):
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw))
    return raw


def _read_parquet(name: str, column: str) -> Iterator[Document]:
    try:
        with storage.open_file(name, "rb") as raw:
            file = pq.ParquetFile(raw)
            if column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(f"{name} has no column {column!r}; it has: {names}\n  name the column: --column NAME")
            row = 0
            for batch in file.iter_batches(columns=[column]):
                for text in batch.column(0).to_pylist():
                    yield Document(text or "", f"{name}:row {row}")
                    row += 1
    except (pa.ArrowInvalid, StorageError) as error:
        raise DataError(f"{name} is no Parquet file, or a damaged one: {str(error).splitlines()[0]}") from error


def _read_text(name: str, column: str) -> Iterator[Document]:
    with storage.open_file(name, "rb") as file:
        data = file.read()
    try:
        yield Document(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 (byte {error.start})\n  convert the file") from error


def _read_hub(name: str, column: str) -> Iterator[Document]:
    import datasets  # deferred: costs 1.3 s and only this source needs it  # noqa: PLC0415

    path, _, rest = name.removeprefix(HUB_PREFIX).partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split=split or "train")
    except Exception as error:  # the library raises of everything
        raise DataError(
            f"{name} cannot be loaded: {error}\n  check the name; compute nodes may have no network"
        ) from error
    if column not in rows.column_names:
        raise DataError(f"{name} has no column {column!r}; it has: {', '.join(rows.column_names)}\n  use --column NAME")
    for number, row in enumerate(rows):
        yield Document(row[column] or "", f"{name}:row {number}")


_Reader = Callable[[str, str], Iterator[Document]]
_READERS: tuple[tuple[str, _Reader], ...] = (
    (".jsonl", _read_jsonl),
    (".jsonl.gz", _read_jsonl),
    (".jsonl.zst", _read_jsonl),
    (".parquet", _read_parquet),
    (".txt", _read_text),
    (".md", _read_text),
    (".rst", _read_text),
)


def _reader(name: str) -> _Reader | None:
    return next((reader for suffix, reader in _READERS if name.endswith(suffix)), None)
