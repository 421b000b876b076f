"""What metrics.jsonl says of a run, read from whichever end is nearer: the file grows by a line a step.

Lines that are no steps (a crash leaves zeros, or half of one) are left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit import records


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Read all steps, oldest first.

    Raises:
        RecordError: the file cannot be read.
    """
    return list(newest_steps(path))[::-1]


def read_first_step(path: Path) -> dict[str, Any] | None:
    """Read the first step; None: there is none yet.

    Raises:
        RecordError: the file cannot be read.
    """
    file = records.open_file(path)
    if file is None:
        return None
    with file:
        steps = (parse_step(line) for line in file if line.endswith(b"\n"))
        return next((step for step in steps if step is not None), None)


def newest_steps(path: Path) -> Iterator[dict[str, Any]]:
    """Give the steps, newest first, reading no more of the file than is taken.

    Raises:
        RecordError: the file cannot be read.
    """
    file = records.open_file(path)
    if file is None:
        return
    with file:
        for _, line, is_ended in records.lines_backwards(file):
            step = parse_step(line) if is_ended else None
            if step is not None:
                yield step


def rewind(path: Path, *, step: int) -> None:
    """Drop the steps beyond one, which are about to be done again, and what stands behind it and is no step.

    Only what is dropped is read: a year of steps would take a minute.
    """
    file = records.open_file(path)
    if file is None:
        return
    keep, is_ended = 0, True
    with file:
        for start, line, ended in records.lines_backwards(file):
            found = parse_step(line)
            if found is not None and found["step"] <= step:
                keep, is_ended = start + len(line) + ended, ended
                break
    with path.open("r+b") as writable:
        writable.truncate(keep)
        if not is_ended:
            writable.seek(0, 2)
            writable.write(b"\n")


def parse_step(line: bytes) -> dict[str, Any] | None:
    """Read a line; None: it is no step."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or type(fields.get("step")) is not int:
        return None
    return {name: value for name, value in fields.items() if name == "attempt" or type(value) in (int, float)}
