"""What metrics.jsonl says of a run, read from whichever end is nearer: the file grows by a line a step."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 64 << 10


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Read all steps, oldest first; a line that is being written is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def read_first_step(path: Path) -> dict[str, Any] | None:
    """Read the first step; None: there is none yet."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        line = file.readline()
    return json.loads(line) if line.endswith(b"\n") else None


def newest_steps(path: Path) -> Iterator[dict[str, Any]]:
    """Give the steps, newest first, reading no more of the file than is taken."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        rest = b""
        end = file.seek(0, io.SEEK_END)
        is_tail = True
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            first, *lines = (file.read(end - start) + rest).split(b"\n")
            if is_tail and lines:
                lines.pop()  # empty, or a line that is being written
                is_tail = False
            yield from (json.loads(line) for line in reversed(lines))
            rest, end = first, start
        if rest and not is_tail:
            yield json.loads(rest)
