"""Modes of files: what belongs to a run is its owner's alone, whatever the umask of the shell that submits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE_UMASK = 0o077


@contextmanager
def private_files() -> Iterator[None]:
    """Let what is made inside be its owner's alone, also what programs make that are started inside.

    That holds for a job too: Slurm gives it the umask of sbatch.
    """
    former = os.umask(PRIVATE_UMASK)
    try:
        yield
    finally:
        os.umask(former)


def share_like_folder(path: Path) -> None:
    """Let those open a file who can open its directory: for what the users of a directory share on purpose."""
    path.chmod(path.parent.stat().st_mode & 0o666)
