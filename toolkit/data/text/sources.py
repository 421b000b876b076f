"""Which inputs there are, what each is, and their documents one after the other."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from toolkit import storage
from toolkit.data.text import hub
from toolkit.data.text.readers import HUB, ROWS, SUFFIXES, TEXT, Piece, Reading, kind_of, read_batches
from toolkit.errors import DataError

_SAMPLE_BYTES = 64 << 10
_SAMPLES = 4  # head, tail and two between
_AT_ONCE = 16  # a remote file system answers many questions at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One input and its identity: size and the checksum of samples, so that a terabyte is not read twice."""

    path: str
    num_bytes: int
    sampled_xxh3: str
    row_groups: tuple[tuple[int, int], ...] = ()
    """Of Parquet: rows and bytes of each group."""
    num_rows: int = 1
    """Of a dataset."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it stands: a file, `NAME:row N`, or the byte of JSONL that it goes up to."""

    text: str
    origin: str


def find_inputs(names: Sequence[str]) -> list[str]:
    """Expand directories to the files below them; keep files and `datasets:` names as they are.

    Raises:
        DataError: a name leads to nothing.
    """
    found: list[str] = []
    for name in names:
        if name.startswith(hub.PREFIX):
            found.append(name)
            continue
        files = [file for file in storage.list_files(name) if kind_of(file)] if storage.exists(name) else []
        if not files:
            known = ", ".join(SUFFIXES)
            raise DataError(
                f"{name}: no text found\n  a file or directory with {known}, or datasets:NAME\n  check the path"
            )
        found.extend(files)
    return found


def identify_inputs(names: Sequence[str], *, column: str) -> list[Input]:
    """Look at each input.

    Raises:
        DataError: it is not what its name says.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda name: identify(name, column=column), names))


def identify(name: str, *, column: str) -> Input:
    """Look at an input: its size, samples of its content and, of Parquet, its row groups."""
    if kind_of(name) == HUB:
        rows = hub.open_rows(name, column=column)
        return Input(path=name, num_bytes=rows.data.nbytes, sampled_xxh3="", num_rows=len(rows))
    num_bytes = storage.size(name)
    digest = xxhash.xxh3_128()
    with storage.open_file(name, "rb") as file:
        last = max(0, num_bytes - _SAMPLE_BYTES)
        for number in range(_SAMPLES):
            file.seek(last * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
        groups = _row_groups(name, file) if kind_of(name) == ROWS else ()
    return Input(path=name, num_bytes=num_bytes, sampled_xxh3=digest.hexdigest(), row_groups=groups)


def read_documents(name: str, *, column: str) -> Iterator[Document]:
    """Read the documents of one input, in order; empty ones are left out.

    Args:
        name: a file, or `datasets:NAME[:CONFIG[:SPLIT]]`.
        column: field of a record that holds the text.

    Raises:
        DataError: broken record, missing column, wrong encoding, truncated file; with file and line.
    """
    for batch in read_batches(Piece(path=name), reading=Reading(column=column)):
        for text, end in zip(batch.texts, batch.ends, strict=True):
            yield Document(text.decode(), _name_origin(name, end))


def _name_origin(name: str, end: int) -> str:
    kind = kind_of(name)
    if kind == TEXT:
        return name
    return f"{name}:row {end - 1}" if kind in {ROWS, HUB} else f"{name} up to byte {end}"


def _row_groups(name: str, file: object) -> tuple[tuple[int, int], ...]:
    try:
        metadata = pq.ParquetFile(file).metadata
    except pa.ArrowException as error:
        raise DataError(f"{name} is no Parquet file, or a damaged one: {str(error).splitlines()[0]}") from error
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return tuple((group.num_rows, group.total_byte_size) for group in groups)
