"""Samples that a run leaves out: which positions its steps read instead, and the file that says so.

A run reads positions 0, 1, 2, ... of its order without those that were skipped: step s reads the numbers
[s * samples_per_step, (s + 1) * samples_per_step) of what is left. What is skipped at one time lies at or after the end
of the checkpoint that the run goes on from, so a step that is done with reads the same however many skips come later,
and a checkpoint of step N has read the first N * samples_per_step positions of what is left, whatever is known later.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from toolkit import records, storage
from toolkit.data.order import Indices
from toolkit.errors import RecordError, RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """One line of skips.jsonl: positions that are not read any more, and why."""

    first_position: int
    """Counted from the run's first sample."""
    stop_position: int
    """The first position after them."""
    step: int
    """Steps that were done when it was decided: the number of the step that went wrong."""
    back_to: int | None
    """The run went back to the checkpoint of this step; None: the step had not been applied, and was done again."""
    reason: str
    attempt: str
    time: float
    samples: dict[str, list[int]]
    """Numbers of the samples by dataset, as far as they are listed."""


class Skips:
    """Which positions the samples that are read stand at: a pure function of the skipped ranges."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Take [first, stop) ranges in any order; they may touch and overlap."""
        merged: list[tuple[int, int]] = []
        for first, stop in sorted(ranges):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            elif stop > first:
                merged.append((first, stop))
        lengths = np.array([0, *(stop - first for first, stop in merged)], dtype=np.int64)
        self._shifts = np.cumsum(lengths)  # [n]: how many positions the first n ranges skip
        self._firsts = np.array([first for first, _ in merged], dtype=np.int64) - self._shifts[:-1]

    @property
    def num_positions(self) -> int:
        """Count the positions that are skipped."""
        return int(self._shifts[-1])

    def position(self, number: int) -> int:
        """Give the position of the sample that is read as the `number`-th, from 0 on."""
        return number + int(self._shifts[np.searchsorted(self._firsts, number, side="right")])

    def positions(self, first: int, count: int) -> list[range]:
        """Give the positions of the samples read as numbers [first, first + count), in unbroken pieces."""
        inside = self._firsts[(self._firsts > first) & (self._firsts < first + count)]
        cuts = [first, *inside.tolist(), first + count]
        return [
            range(self.position(begin), self.position(begin) + end - begin) for begin, end in itertools.pairwise(cuts)
        ]

    def range_of_steps(self, first_step: int, stop_step: int, *, samples_per_step: int) -> tuple[int, int]:
        """Give the range of positions from the first sample of a step to the last one before another."""
        last = self.position(stop_step * samples_per_step - 1)
        return self.position(first_step * samples_per_step), last + 1


NOTHING_SKIPPED = Skips(())


def join_skips(lines: Sequence[Skip]) -> Skips:
    """Make one of all lines."""
    return Skips([(line.first_position, line.stop_position) for line in lines])


def group_samples(members: Indices, samples: Indices, *, names: Sequence[str]) -> dict[str, list[int]]:
    """List samples by the name of their dataset."""
    return {
        name: samples[members == member].tolist()
        for member, name in enumerate(names)
        if bool((members == member).any())
    }


def read_skips(path: Path) -> tuple[Skip, ...]:
    """Read skips.jsonl, oldest first; none where there is no file.

    Raises:
        RunError: a line cannot be read: without it the run would read other samples than before.
    """
    try:
        lines = (records.read_bytes(path) or b"").splitlines()
        return tuple(
            records.parse_record(line, Skip, where=f"{path}:{number}") for number, line in enumerate(lines, start=1)
        )
    except RecordError as error:
        raise RunError(
            f"{str(error).splitlines()[0]}\n  it says which samples the run has left out\n  restore it from a copy"
        ) from error


def add_skip(path: Path, skip: Skip) -> None:
    """Add a line; the file is there whole, with it or without it."""
    text = "".join(json.dumps(asdict(line)) + "\n" for line in (*read_skips(path), skip))
    storage.write_atomic(str(path), text.encode())
