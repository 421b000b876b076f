"""Lines of a text file, also of a packed one, in blocks of bounded size from any place on."""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import zstandard

from toolkit import storage

DAMAGE = (EOFError, zlib.error, zstandard.ZstdError)

_BLOCK_BYTES = 8 << 20  # measured: smaller ones cost calls, larger ones only memory
_GZIP_BYTES = 16 << 10  # read before unpacking: it may become 1,000 times as much, of zstd 30,000 times
_ZSTD_BYTES = 1 << 10
_COUNTED_BYTES = 4 << 30  # how far lines are counted to name one


def is_packed(path: str) -> bool:
    """Whether a file is unpacked on the way."""
    return path.endswith((".gz", ".zst"))


def open_lines(path: str) -> IO[bytes]:
    """Open a text file, unpacked on the way when its name ends with .gz or .zst.

    Reading raises one of DAMAGE where a file is cut off or damaged, after all that could be unpacked.
    """
    raw = storage.open_file(path, "rb")
    return _unpack(path, raw) if is_packed(path) else raw


def _unpack(path: str, raw: IO[bytes]) -> io.BufferedReader:
    if path.endswith(".gz"):
        return io.BufferedReader(_Unpacked(raw, lambda: zlib.decompressobj(wbits=31), at_once=_GZIP_BYTES))
    return io.BufferedReader(_Unpacked(raw, zstandard.ZstdDecompressor().decompressobj, at_once=_ZSTD_BYTES))


def read_blocks(
    path: str, *, start: int, stop: int | None, resume: int | None, limit: int
) -> Iterator[tuple[int, bytes, int]]:
    """Read the lines that begin at bytes [start, stop) of a file, or of what it unpacks to.

    Args:
        path: the file.
        start: any byte; of a packed file the first.
        stop: any byte; None: the end.
        resume: where a line begins, to go on there.
        limit: bytes of the longest line that is read as a whole.

    Yields:
        Place, lines, and the place behind them. Of a line above the limit, only its first part, alone.

    Raises:
        One of DAMAGE: the file is cut off or damaged; after all lines that are whole.
    """
    with open_lines(path) as file:
        if is_packed(path):
            start = resume or 0
            chunks = _unpacked_chunks(file, skip=start)
        else:
            start = _seek_line(file, start, stop=stop) if resume is None else file.seek(resume)
            chunks = _plain_chunks(file, start, stop)
        yield from _cut_lines(chunks, start, stop=stop, limit=limit)


def measure_expansion(path: str, *, sample_bytes: int) -> float:
    """Tell how many times its size a packed file becomes, from its first bytes.

    Raises:
        One of DAMAGE: they are damaged.
    """
    with storage.open_file(path, "rb") as raw:
        unpacked = _unpack(path, raw)
        num_bytes = 0
        while num_bytes < sample_bytes and (data := unpacked.read1(_BLOCK_BYTES)):
            num_bytes += len(data)
        return num_bytes / max(1, raw.tell())


def name_line(path: str, offset: int) -> str:
    """Name the line that begins at a byte, by its number where counting is not too long."""
    if offset > _COUNTED_BYTES:
        return f"{path} at byte {offset}"
    lines, left = 1, offset
    with open_lines(path) as file:
        while left and (data := file.read(min(left, _BLOCK_BYTES))):
            lines, left = lines + data.count(b"\n"), left - len(data)
    return f"{path}:{lines} (byte {offset})"


def _seek_line(file: IO[bytes], start: int, *, stop: int | None) -> int:
    """Go to the first line that begins at a place or after it, but no further than needed to see that none does."""
    if start == 0:
        return 0
    place = file.seek(start - 1)
    at_once = _BLOCK_BYTES if stop is None else min(_BLOCK_BYTES, stop - place)
    while (stop is None or place < stop) and (part := file.readline(at_once)):
        place += len(part)
        if part.endswith(b"\n"):
            break
    return place


def _plain_chunks(file: IO[bytes], start: int, stop: int | None) -> Iterator[bytes]:
    wanted = _BLOCK_BYTES
    while True:
        if stop is not None:  # the line that crosses the end is seldom longer than this
            wanted = min(_BLOCK_BYTES, max(stop - start, 64 << 10))
        chunk = file.read(wanted)
        if not chunk:
            return
        start += len(chunk)
        yield chunk


def _unpacked_chunks(file: IO[bytes], *, skip: int) -> Iterator[bytes]:
    """Unpack from the beginning, drop what was read before; give what is good before raising."""
    pieces: list[bytes] = []
    held = 0
    failure: Exception | None = None
    more = True
    while more:
        try:
            data = file.read1(_BLOCK_BYTES)  # type: ignore[attr-defined]
        except DAMAGE as error:
            data, failure = b"", error
        more = bool(data)
        kept = data[skip:]
        skip -= len(data) - len(kept)
        pieces.append(kept)
        held += len(kept)
        if held >= _BLOCK_BYTES or not more:
            yield b"".join(pieces)
            pieces, held = [], 0
    if failure is not None:
        raise failure


def _cut_lines(
    chunks: Iterator[bytes], offset: int, *, stop: int | None, limit: int
) -> Iterator[tuple[int, bytes, int]]:
    """Cut chunks into blocks of whole lines; see `read_blocks`."""
    carry, dropped = b"", 0
    for chunk in chunks:
        data = chunk
        if len(carry) > limit:
            newline = data.find(b"\n") + 1
            if not newline:
                dropped += len(data)
                continue
            end = offset + len(carry) + dropped + newline
            yield offset, carry, end
            offset, carry, dropped, data = end, b"", 0, data[newline:]
        if stop is not None and offset >= stop:
            return
        data = carry + data
        cut = data.rfind(b"\n") + 1
        if stop is not None and offset + cut >= stop:
            cut = data.find(b"\n", stop - 1 - offset) + 1
        if cut:
            yield offset, data[:cut], offset + cut
        offset, carry = offset + cut, data[cut:]
        if stop is not None and offset >= stop:
            return
        if len(carry) > limit:
            carry, dropped = carry[: limit + 1], len(carry) - limit - 1
    if carry:
        yield offset, carry, offset + len(carry) + dropped


class _Unpacked(io.RawIOBase):
    """Members or frames end to end; unlike the libraries' readers it gives what was good before it complains."""

    def __init__(self, raw: IO[bytes], start: Callable[[], Any], *, at_once: int) -> None:
        self._raw, self._start, self._at_once = raw, start, at_once
        self._unpacker: Any = None  # None between members
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, target: Any) -> int:
        while not self._left:
            packed = self._raw.read(self._at_once)
            if not packed:
                if self._unpacker is not None:
                    raise EOFError("it ends within packed data")
                return 0
            self._left = memoryview(self._unpack(packed))
        count = min(len(target), len(self._left))
        target[:count], self._left = self._left[:count], self._left[count:]
        return count

    def _unpack(self, packed: bytes) -> bytes:
        pieces = []
        while packed := packed if self._unpacker else packed.lstrip(b"\0"):  # gzip may be padded with zeros
            self._unpacker = self._unpacker or self._start()
            pieces.append(self._unpacker.decompress(packed))
            packed = b""
            if self._unpacker.eof:
                packed, self._unpacker = self._unpacker.unused_data, None
        return b"".join(pieces)
