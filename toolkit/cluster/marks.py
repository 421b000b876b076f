"""The mark of a job: a word in its comment by which it is found again, whoever lost its number.

An answer of sbatch may be lost after the job was taken, a number means another job on another cluster, and Slurm
forgets a job minutes after its end. So each request carries a word of its own: `toolkit:RUN:REQUEST`.
"""

import re
import uuid

_PATTERN = re.compile(r"toolkit:(\w+):([\w.+-]+)")


def new_mark(owner: str) -> str:
    """Make the mark of a request that was never made before."""
    return follower_mark(owner, uuid.uuid4().hex[:12])


def follower_mark(owner: str, request: str) -> str:
    """Make the mark of a request that may be made twice, and must not be taken twice.

    Args:
        owner: the run (its identity), or what else the job is for.
        request: what it is, in letters, digits and `.+-`: the same request has the same word.
    """
    mark = f"toolkit:{owner}:{request}"
    assert _PATTERN.fullmatch(mark), f"{mark} is no mark"
    return mark


def find_mark(comment: str) -> str:
    """Find the mark in a job's comment; empty: it has none."""
    found = _PATTERN.search(comment)
    return found[0] if found else ""


def owner_of(mark: str) -> str:
    """Say whose job has this mark; empty for no mark."""
    found = _PATTERN.fullmatch(mark)
    return found[1] if found else ""


def write_comment(own: str, mark: str) -> str:
    """Write a comment with a mark: in place of another one, or behind what a person wants to stand there."""
    return " ".join(filter(None, [_PATTERN.sub("", own).strip(), mark]))
