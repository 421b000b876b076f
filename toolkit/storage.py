"""One path language for local paths and any fsspec URL: open, list, write-then-rename, checksum."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
import xxhash

from toolkit.errors import StorageError

_PIECE_BYTES = 8 << 20


def is_local(url: str) -> bool:
    """Whether a path names a file of this machine (or of a mounted file system)."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """Turn a local URL into a path."""
    assert is_local(url), f"{url} is not local"
    return Path(url.removeprefix("file://"))


def join(url: str, *parts: str) -> str:
    """Append names to a path or URL."""
    return "/".join([url.rstrip("/"), *parts])


def open_file(url: str, mode: str) -> IO[Any]:
    """Open a file; when writing, its directory is made first.

    Raises:
        FileNotFoundError: there is no such file to read.
        StorageError: anything else.
    """
    fs, path = _resolve(url)
    with _telling(url):
        if "w" in mode:
            fs.makedirs(os.path.dirname(path), exist_ok=True)
        return fs.open(path, mode)  # type: ignore[no-any-return]


def exists(url: str) -> bool:
    """Whether a file or directory exists."""
    fs, path = _resolve(url)
    with _telling(url):
        return bool(fs.exists(path))


def size(url: str) -> int:
    """Give the bytes of a file."""
    fs, path = _resolve(url)
    with _telling(url):
        return int(fs.size(path))


def list_files(url: str, suffix: str = "") -> list[str]:
    """List the files below a directory, sorted, under names that `open_file` takes."""
    fs, path = _resolve(url)
    with _telling(url):
        found = sorted(name for name in fs.find(path) if name.endswith(suffix))
    return found if is_local(url) else [fs.unstrip_protocol(name) for name in found]


def write_atomic(url: str, data: bytes) -> None:
    """Write a file beside and rename it, so that readers see the old one or the whole new one."""
    beside = f"{url}.{uuid.uuid4().hex[:8]}.partial"
    with open_file(beside, "wb") as file, _telling(url):
        file.write(data)
        if is_local(url):
            file.flush()
            os.fsync(file.fileno())
    rename(beside, url)


def rename(source: str, target: str) -> None:
    """Rename within a file system; a local file that stands there is replaced."""
    if is_local(source):
        with _telling(source):
            os.replace(local_path(source), local_path(target))
        return
    fs, path = _resolve(source)
    with _telling(source):
        fs.mv(path, _resolve(target)[1])


def remove_tree(url: str) -> None:
    """Delete a directory and what is in it; nothing happens where there is none."""
    fs, path = _resolve(url)
    with _telling(url):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def checksum(url: str) -> str:
    """Give the xxh3-128 of a file, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with open_file(url, "rb") as file, _telling(url):
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Tell the free space of the file system that holds a path, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(path)).free


def nearest_existing(path: Path) -> Path:
    """Find a path or the nearest of its parents that exists."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


def _resolve(url: str) -> tuple[Any, str]:
    with _telling(url):
        fs, path = fsspec.core.url_to_fs(url)
    return fs, path


@contextmanager
def _telling(url: str) -> Iterator[None]:
    """Turn a file system's trouble into one sentence: HDFS answers with a Java stack."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StorageError(
            f"{url}: {first}\n  the file system refused\n  check the path, its owner and free space"
        ) from error
