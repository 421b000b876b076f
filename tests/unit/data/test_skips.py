"""What a run reads when samples are left out."""

import dataclasses
from itertools import count, islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.skips import Skip, Skips, add_skip, join_skips, read_skips
from toolkit.errors import RunError

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=6)
LINE = Skip(
    first_position=40,
    stop_position=48,
    step=5,
    back_to=None,
    reason="the loss is nan",
    attempt="7.0",
    time=1.5,
    samples={"a": [3, 9]},
)


@given(RANGES, st.integers(0, 50), st.integers(1, 40))
def test_positions_are_those_of_a_walk_that_leaves_out_what_is_skipped(
    pairs: list[tuple[int, int]], first: int, number: int
) -> None:
    skips = Skips([(start, start + length) for start, length in pairs])
    skipped = {position for start, length in pairs for position in range(start, start + length)}
    walk = islice((position for position in count() if position not in skipped), first, first + number)
    pieces = skips.positions(first, number)
    assert [position for piece in pieces for position in piece] == list(walk)
    assert all(pieces), "no piece is empty"
    assert skips.num_positions == len(skipped)


@given(RANGES, st.integers(0, 8), st.integers(1, 4))
def test_a_later_skip_leaves_the_steps_before_it_as_they_were(
    pairs: list[tuple[int, int]], step: int, num_steps: int
) -> None:
    before = Skips([(start, start + length) for start, length in pairs])
    first, stop = before.range_of_steps(step, step + num_steps, samples_per_step=8)
    after = Skips([*((start, start + length) for start, length in pairs), (first, stop)])
    if step:
        assert after.positions(0, step * 8) == before.positions(0, step * 8)
    # what comes next is what would have come after the steps that are left out
    assert after.position(step * 8) == before.position((step + num_steps) * 8)


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "skips.jsonl"
    assert read_skips(path) == ()
    second = dataclasses.replace(LINE, first_position=48, stop_position=64, back_to=2)
    add_skip(path, LINE)
    add_skip(path, second)
    assert read_skips(path) == (LINE, second)
    assert join_skips(read_skips(path)).position(40) == 64


def test_a_damaged_file_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "skips.jsonl"
    add_skip(path, LINE)
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(RunError, match="which samples the run has left out"):
        read_skips(path)
