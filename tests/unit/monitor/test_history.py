"""metrics.jsonl read from either end."""

import json
from pathlib import Path

import pytest

from toolkit.monitor.history import newest_steps, read_first_step, read_steps


def write(path: Path, num_steps: int, *, padding: int = 0) -> None:
    lines = [json.dumps({"step": step, "x": "y" * padding}) + "\n" for step in range(1, num_steps + 1)]
    path.write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize(("num_steps", "padding"), [(0, 0), (1, 0), (3, 0), (2000, 100), (5, 70_000)])
@pytest.mark.parametrize("torn", ["", '{"step": 9'])
def test_both_ends_tell_the_same_and_a_torn_line_is_left_out(
    tmp_path: Path, num_steps: int, padding: int, torn: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, num_steps, padding=padding)
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    steps = read_steps(path)
    assert [step["step"] for step in steps] == list(range(1, num_steps + 1))
    assert list(newest_steps(path)) == steps[::-1]
    assert read_first_step(path) == (steps[0] if steps else None)


def test_a_run_that_has_not_begun_has_no_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_steps(path) == []
    assert list(newest_steps(path)) == []
    assert read_first_step(path) is None
