"""Files below a path, listed, moved and removed by their names as they stand: no name is a pattern."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def local_sizes(path: Path) -> Iterator[tuple[str, int]]:
    """Walk a directory; a link counts as what it leads to, and as empty where that is nothing."""
    if not path.is_dir():
        if path.exists():
            yield "", path.stat().st_size
        return
    for folder, _, names in os.walk(path, onerror=_raise_unless_gone):
        for name in names:
            file = Path(folder, name)
            with suppress(FileNotFoundError):
                yield str(file.relative_to(path)), file.stat().st_size if file.exists() else 0


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def list_sizes(fs: Any, path: str) -> dict[str, int]:
    """Give the bytes of each file below a path, by its name from there on; that of the path itself is empty."""
    if _is_native(fs):  # fsspec's `find` leaves out directories that cannot be read, without a word
        try:
            found = {one.path: int(one.length) for one in fs.client.list_status(path, True) if not one.isdir}
        except FileNotFoundError:
            return {}
    else:
        found = {name: int(info["size"]) for name, info in fs.find(path, detail=True).items()}
    start = len(path.rstrip("/")) + 1
    return {name[start:]: found[name] for name in sorted(found)}


def remove(fs: Any, path: str) -> None:
    """Delete a file, or a directory and what is in it; nothing happens where there is none."""
    if not fs.exists(path):
        return
    if _is_native(fs):
        fs.rm(path, recursive=True)
        return
    # Not by `rm`: it takes names with `*`, `?` and brackets for patterns.
    found = {path: fs.info(path), **fs.find(path, withdirs=True, detail=True)}
    for name in sorted(found, reverse=True):
        if found[name]["type"] != "directory":
            fs.rm_file(name)
        else:
            with suppress(FileNotFoundError):  # where directories are but the names of what is in them
                fs.rmdir(name)


def move(fs: Any, source: str, target: str) -> None:
    """Rename a file or directory; a file that stands there is replaced."""
    if _is_native(fs):
        fs.mv(source, target, overwrite=True)
        return
    # Not by `mv`: it takes names with `*`, `?` and brackets for patterns.
    found = fs.find(source)
    if not found:
        raise FileNotFoundError(source)
    for name in found:
        fs.cp_file(name, target + name[len(source) :])
    remove(fs, source)


def _is_native(fs: Any) -> bool:
    return fs.protocol in {"hdfs", "viewfs"}
