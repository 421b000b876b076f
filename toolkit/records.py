"""Records in files, as crashes, other versions and other people leave them: read by their type, and damage is named.

A record is JSON, alone or one a line. What a newer version has added to it is left out, what an older one did not have
gets its default. Nothing here waits: a pipe or a device in the place of a file is damage too.
"""

import errno
import functools
import io
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from toolkit.errors import RecordError

log = logging.getLogger(__name__)

Schema = TypeVar("Schema")

_BLOCK_BYTES = 64 << 10
_MOST_BYTES = 256 << 20
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR}


def open_file(path: Path) -> IO[bytes] | None:
    """Open a file to read; None: there is none.

    Raises:
        RecordError: it is no file, or may not be read.
    """
    try:
        return open(_open(path, os.O_RDONLY), "rb")
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise RecordError(f"{path} cannot be read: {error.strerror}\n  its owner decides who may read it") from error


def open_to_append(path: Path) -> IO[str]:
    """Open a text file to add lines; it is made where there is none.

    Raises:
        RecordError: it is no file, or may not be written.
    """
    try:
        return open(_open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror}") from error


def _open(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RecordError(f"{path} is no file\n  a record of a run must be one\n  move it away")
    return descriptor


def read_bytes(path: Path) -> bytes | None:
    """Read a file; None: there is none.

    Raises:
        RecordError: it is no file, may not be read, or is far too large.
    """
    file = open_file(path)
    if file is None:
        return None
    with file:
        try:
            data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise RecordError(f"{path} has more than {_MOST_BYTES >> 20} MiB\n  no record is so large\n  move it away")
    return data


def read_text(path: Path) -> str | None:
    """Read a file as text, with a mark for what is none; None: there is no file.

    Raises:
        RecordError: see `read_bytes`.
    """
    data = read_bytes(path)
    return None if data is None else data.decode("utf-8", errors="replace")


def read_record(path: Path, schema: type[Schema]) -> Schema | None:
    """Read a file that holds one record; None: there is no file.

    Raises:
        RecordError: it does not hold such a record; the text says what is wrong.
    """
    data = read_bytes(path)
    return None if data is None else parse_record(data, schema, where=str(path))


def read_lines(path: Path, schema: type[Schema]) -> list[Schema]:
    """Read a file with one record a line; what cannot be read is left out, and said once. No file: no records.

    Raises:
        RecordError: the file itself cannot be read.
    """
    return sort_lines(path, schema)[0]


def sort_lines(path: Path, schema: type[Schema]) -> tuple[list[Schema], list[bytes]]:
    """Read a file with one record a line, and the lines that are none, which are said once.

    Raises:
        RecordError: the file itself cannot be read.
    """
    found, damaged = [], []
    for number, line in enumerate((read_bytes(path) or b"").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(parse_record(line, schema, where=f"{path}:{number}"))
        except RecordError as error:
            say_once(f"left out: {error}")
            damaged.append(line)
    return found, damaged


def parse_record(data: bytes, schema: type[Schema], *, where: str) -> Schema:
    """Read a record.

    Raises:
        RecordError: it is none of its type; the text names `where` it stands.
    """
    try:
        return msgspec.json.decode(data, type=schema)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError(f"{where} is damaged: {str(error).splitlines()[0]}") from error


def lines_backwards(file: IO[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    """Give the lines of a file from its end, reading no more than is taken.

    Returns:
        Where each begins, the line, and whether it was ended.
    """
    position = file.seek(0, io.SEEK_END)
    gathered: list[bytes] = []  # of the line that reaches into what was read before, its end first
    is_ended = False
    while position > 0:
        start = max(0, position - _BLOCK_BYTES)
        file.seek(start)
        first, *others = file.read(position - start).split(b"\n")
        for piece in reversed(others):
            position -= len(piece)
            yield position, piece + b"".join(reversed(gathered)), is_ended
            gathered, is_ended = [], True
            position -= 1
        gathered.append(first)
        position = start
    if gathered:
        yield 0, b"".join(reversed(gathered)), is_ended


@functools.cache
def say_once(text: str) -> None:
    """Warn of damage that is lived with: many readers meet the same."""
    log.warning("%s", text)
