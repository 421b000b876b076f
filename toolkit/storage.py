"""One path language for local paths and any fsspec URL: open, list, write-then-rename, copy, checksum."""

import io
import logging
import os
import random
import shutil
import stat
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import xxhash

from toolkit import remote, trees
from toolkit.errors import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

is_local = remote.is_local
patience = remote.patience

_BUFFER_BYTES = 1 << 20  # reading more at once is slower: 8 MiB took 4 times as long on a local disk
_PIECE_BYTES = 8 << 20
_PIECES_AHEAD = 4  # pieces of a remote file that are on their way at once
_FILES_AT_ONCE = 4
_TRIES = 4  # of writing a whole file, after passing trouble


def local_path(url: str) -> Path:
    """Turn a local URL into a path."""
    assert is_local(url), f"{url} is not local"
    return Path(url.removeprefix("file://"))


def make_absolute(url: str) -> str:
    """Make a local path independent of the directory one is in; anything else stays."""
    is_name = url.startswith("datasets:")
    return url if is_name or not is_local(url) else str(local_path(url).absolute())


def join(url: str, *parts: str) -> str:
    """Append names to a path or URL."""
    return "/".join([url.rstrip("/"), *parts])


def is_inner(name: str) -> bool:
    """Whether a name that stands in a file means a file below its directory, on any file system: pure."""
    is_plain = not any(letter in "\0\\" or "\ud800" <= letter <= "\udfff" for letter in name)
    return is_plain and not {"", ".", ".."} & set(name.split("/"))


def open_file(url: str, mode: Literal["rb", "wb"]) -> IO[Any]:
    """Open a file; when writing, its directory is made first.

    Raises:
        FileNotFoundError: there is no such file to read.
        StorageError: anything else.
    """
    if is_local(url):
        with remote.telling(url):
            if mode == "rb":
                _refuse_stream(url)
                return local_path(url).open("rb")
            local_path(url).parent.mkdir(parents=True, exist_ok=True)
            return io.BufferedWriter(_LocalWriter(url), _BUFFER_BYTES)
    if mode == "rb":
        return io.BufferedReader(remote.RemoteReader(url), _BUFFER_BYTES)
    return io.BufferedWriter(remote.RemoteWriter(url), _BUFFER_BYTES)


def read_file(url: str) -> bytes:
    """Read a small file.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: anything else.
    """
    with open_file(url, "rb") as file:
        return bytes(file.read())


def exists(url: str) -> bool:
    """Whether a file or directory exists."""
    if is_local(url):
        with remote.telling(url):
            return os.path.exists(local_path(url))
    return remote.ask(url, lambda fs, path: bool(fs.exists(path)))


def size(url: str) -> int:
    """Give the bytes of a file."""
    if is_local(url):
        with remote.telling(url):
            return local_path(url).stat().st_size
    return remote.ask(url, lambda fs, path: int(fs.size(path)))


def list_files(url: str, suffix: str = "") -> list[str]:
    """List the files below a directory, sorted, under names that `open_file` takes; of a file, itself."""
    base = str(local_path(url).absolute()) if is_local(url) else url.rstrip("/")
    return [join(base, name) if name else base for name in file_sizes(url) if (name or base).endswith(suffix)]


def file_sizes(url: str) -> dict[str, int]:
    """Give the bytes of each file below a directory, in one listing.

    Links to directories are not followed: what they lead to is not below.

    Returns:
        By the file's path relative to the directory, sorted; of a file, that is empty.
    """
    if not is_local(url):
        return remote.ask(url, trees.list_sizes)
    with remote.telling(url):
        found = dict(trees.local_sizes(local_path(url)))
    return {name: found[name] for name in sorted(found)}


def make_dirs(url: str) -> None:
    """Make a directory and those above it; nothing happens where it exists."""
    if is_local(url):
        with remote.telling(url):
            local_path(url).mkdir(parents=True, exist_ok=True)
        return
    remote.ask(url, lambda fs, path: fs.makedirs(path, exist_ok=True))


def rename(source: str, target: str) -> None:
    """Rename within a file system; a file that stands there is replaced."""
    if is_local(source):
        with remote.telling(source):
            os.replace(local_path(source), local_path(target))
        return
    target_path = remote.resolve(target)[1]
    remote.order(source, lambda fs, path: trees.move(fs, path, target_path))


def remove_tree(url: str) -> None:
    """Delete a file or a link, or a directory and what is in it; nothing happens where there is none."""
    if not is_local(url):
        remote.order(url, trees.remove)
        return
    path = local_path(url)
    with remote.telling(url), suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def write_beside(url: str) -> Iterator[IO[bytes]]:
    """Give a file to write that takes its name at the end: readers see the old one or the whole new one.

    What stands there is replaced. After an error nothing is left.
    """
    beside = f"{url}.{uuid.uuid4().hex[:8]}.partial"
    file = open_file(beside, "wb")
    try:
        yield file
        file.flush()
        if is_local(url):
            with remote.telling(url):
                os.fsync(file.fileno())
        file.close()
        rename(beside, url)
    except BaseException:
        # The error at hand says more than those of tidying up.
        with suppress(StorageError, FileNotFoundError):
            file.close()
        with suppress(StorageError, FileNotFoundError):
            remove_tree(beside)
        raise


def write_atomic(url: str, data: bytes) -> None:
    """Write a file beside and rename it."""

    def write() -> None:
        with write_beside(url) as file:
            file.write(data)

    _repeat_whole(write)


def checksum(url: str) -> str:
    """Give the xxh3-128 of a file, in hexadecimal."""
    digest = xxhash.xxh3_128()
    for piece in _read_pieces(url):
        digest.update(piece)
    return digest.hexdigest()


def _ignore(num_bytes: int) -> None:
    """Take a report of progress that nobody wants."""


def copy_file(source: str, target: str, *, xxh3: str | None = None, report: Callable[[int], None] = _ignore) -> str:
    """Copy between any two file systems, beside and renamed; a remote source is read in parallel pieces.

    Args:
        source: file to read; without `xxh3` it must not change meanwhile.
        target: name of the copy; what stands there is replaced.
        xxh3: what the content must be.
        report: told the bytes of each piece that was copied, negative when they are copied again.

    Returns:
        The xxh3-128 of what was copied.

    Raises:
        FileNotFoundError: there is no such source.
        StorageError: it could not be copied, or its content is another.
    """

    def copy() -> str:
        digest, done = xxhash.xxh3_128(), 0
        try:
            with write_beside(target) as file:
                for piece in _read_pieces(source):
                    digest.update(piece)
                    file.write(piece)
                    done += len(piece)
                    report(len(piece))
                if xxh3 not in {None, digest.hexdigest()}:
                    raise StorageError(
                        f"{source}: has checksum {digest.hexdigest()}\n  it must have {xxh3}\n"
                        "  it was damaged or replaced: make it again, or copy it from elsewhere"
                    )
        except BaseException:
            report(-done)
            raise
        return digest.hexdigest()

    return _repeat_whole(copy)


def copy_files(
    source: str,
    target: str,
    names: Sequence[str],
    *,
    xxh3: Mapping[str, str],
    report: Callable[[int], None] = _ignore,
) -> dict[str, str]:
    """Copy files from one directory to another, several at once; see `copy_file`.

    Args:
        source: directory to read.
        target: directory to write into; files that stand there are replaced, others stay.
        names: paths relative to both, below them.
        xxh3: what the content must be, of names for which that is known.
        report: called from several threads.

    Returns:
        The xxh3-128 of each file by its name.
    """
    for name in names:
        _refuse_outside(target, name)

    def copy(name: str) -> str:
        return copy_file(join(source, name), join(target, name), xxh3=xxh3.get(name), report=report)

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        copied = [pool.submit(copy_context().run, copy, name) for name in names]
        try:
            return {name: future.result() for name, future in zip(names, copied, strict=True)}
        finally:
            pool.shutdown(cancel_futures=True)


def free_bytes(path: Path) -> int:
    """Tell the free space of the file system that holds a path, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(path)).free


def say_bytes(num_bytes: float) -> str:
    """Write a size for people: `6.8 MiB`, `74.5 GiB`, `1.2 TiB`."""
    unit, size = next(
        ((unit, size) for unit, size in (("TiB", 2.0**40), ("GiB", 2.0**30)) if num_bytes >= size), ("MiB", 2.0**20)
    )
    return f"{num_bytes / size:.1f} {unit}"


def nearest_existing(path: Path) -> Path:
    """Find a path or the nearest of its parents that can be seen to exist."""
    existing = path.absolute()
    while True:
        with suppress(PermissionError):  # a directory above may not be searched
            if existing.exists():
                return existing
        existing = existing.parent


class _LocalWriter(io.FileIO):
    """A local file whose trouble (a full disk) is told with its name."""

    def __init__(self, url: str) -> None:
        try:
            super().__init__(local_path(url), "wb")
        except FileNotFoundError as error:  # its directory has gone, or takes no files (/proc)
            reason = "its directory takes no files, or has just gone"
            raise StorageError(f"{url} cannot be written\n  {reason}\n  write it to another directory") from error
        self._url = url

    def write(self, data: Any) -> int:
        with remote.telling(self._url):
            return super().write(data)


def _refuse_outside(target: str, name: str) -> None:
    """Refuse to write where `..` or a link would lead out of a directory."""
    is_below = is_inner(name)
    if is_below and is_local(target):
        base = Path(os.path.realpath(local_path(target)))
        is_below = Path(os.path.realpath(local_path(join(target, name)).parent)).is_relative_to(base)
    if not is_below:
        raise StorageError(
            f"{name!r} does not lie below {target}\n  a copy writes only there\n"
            "  remove the link, or take another source: this one names files outside of it"
        )


def _refuse_stream(url: str) -> None:
    """Refuse pipes, sockets and devices: to open one may wait for ever, and it has no size."""
    mode = local_path(url).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StorageError(
            f"{url} is a pipe, a socket or a device\n  what is read must be a file: it is read more than once\n"
            "  write its content to a file, and give that"
        )


def _repeat_whole(act: Callable[[], T]) -> T:
    """Write a file again after passing trouble: what was sent of a remote one cannot be continued."""
    for tries in range(1, _TRIES + 1):
        try:
            return act()
        except StorageError as error:
            # A timeout means that the patience is used up already.
            is_passing = remote.is_passing(error.__cause__) and not isinstance(error.__cause__, TimeoutError)
            if not is_passing or tries == _TRIES:
                raise
            log.warning("%s; writing it again", error)
            time.sleep(random.uniform(0.25, 0.75) * 2**tries)
    raise AssertionError("the last try returns or raises")


def _read_pieces(url: str) -> Iterator[bytes]:
    """Read a file from its start to its end; of a remote one, several pieces are on their way at once."""
    if is_local(url):
        with open_file(url, "rb") as file, remote.telling(url):
            while chunk := file.read(_BUFFER_BYTES):
                yield chunk
        return
    num_bytes = size(url)
    with ThreadPoolExecutor(_PIECES_AHEAD) as pool:
        pending: deque[Future[list[bytes]]] = deque()
        try:
            for start in range(0, num_bytes, _PIECE_BYTES):
                end = min(start + _PIECE_BYTES, num_bytes)
                pending.append(pool.submit(copy_context().run, _read_piece, url, start, end))
                if len(pending) == _PIECES_AHEAD:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read_piece(url: str, start: int, end: int) -> list[bytes]:
    def act(fs: Any, path: str) -> list[bytes]:
        if remote.is_hadoop(url):
            # A read asks for the rest of the block, and much of it is on its way when the next piece is read.
            chunks = [bytes(chunk) for chunk in fs.open(path, "rb").read_range_stream(start, end - start)]
        else:
            chunks = [fs.cat_file(path, start=start, end=end)]
        count = sum(map(len, chunks))
        if count != end - start:
            raise OSError(f"{count} bytes came instead of {end - start}: the file is changing")
        return chunks

    return remote.ask(url, act)
