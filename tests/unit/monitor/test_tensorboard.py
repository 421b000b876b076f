"""What TensorBoard draws of a run that was broken off and went on."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.util import tensor_util

from toolkit.monitor.sinks import BackgroundSink, TensorBoardSink


def drawn(directory: Path) -> list[tuple[int, float]]:
    """Read as TensorBoard's server does."""
    read = plugin_event_accumulator.EventAccumulator(str(directory))
    read.Reload()
    events = read.Tensors("train/loss") if "train/loss" in read.Tags()["tensors"] else []
    return [(event.step, round(float(tensor_util.make_ndarray(event.tensor_proto)), 3)) for event in events]


def attempt(directory: Path, number: int, *, first: int, last: int, dies: bool) -> None:
    """Write the steps after `first` up to `last`; one that dies leaves what was flushed."""
    before = set(directory.iterdir())
    sink = TensorBoardSink(directory)
    [path] = set(directory.iterdir()) - before
    # TensorBoard takes files by the second of their making, which is in their names
    path.rename(directory / f"events.out.tfevents.{1_700_000_000 + number}.node.1.0")
    sink.rewind(first)
    for step in range(first + 1, last + 1):
        sink.write(step, {"train/loss": number + step / 1000})
    if dies:
        sink._writer.flush()
    else:
        sink.close("FINISHED")


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([(0, 12), (5, 14)], [*((0, step) for step in range(1, 6)), *((1, step) for step in range(6, 15))]),
        ([(0, 12), (12, 14)], [*((0, step) for step in range(1, 13)), (1, 13), (1, 14)]),
        ([(0, 4), (0, 3)], [(1, 1), (1, 2), (1, 3)]),
        ([(0, 9), (6, 8), (3, 5), (5, 6)], [*((0, step) for step in range(1, 4)), (2, 4), (2, 5), (3, 6)]),
        ([(0, 9), (5, 5)], [(0, step) for step in range(1, 6)]),
    ],
)
def test_each_step_is_drawn_once_and_in_order(
    attempts: list[tuple[int, int]], expected: list[tuple[int, int]], tmp_path: Path
) -> None:
    for number, (first, last) in enumerate(attempts):
        attempt(tmp_path, number, first=first, last=last, dies=number < len(attempts) - 1)
    assert drawn(tmp_path) == [(step, round(number + step / 1000, 3)) for number, step in expected]


def test_steps_of_a_version_that_noted_no_start_are_forgotten_too(tmp_path: Path) -> None:
    attempt(tmp_path, 0, first=0, last=9, dies=True)
    old = tmp_path / "events.out.tfevents.1700000000.node.1.0"
    sink = TensorBoardSink(tmp_path / "old")
    for step in range(1, 10):
        sink.write(step, {"train/loss": step / 1000})
    sink.close("FINISHED")
    [written] = (tmp_path / "old").iterdir()
    old.write_bytes(written.read_bytes())
    written.unlink()
    attempt(tmp_path, 1, first=4, last=5, dies=False)
    assert [step for step, _ in drawn(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_run_that_goes_back_in_one_attempt_is_drawn_once(tmp_path: Path) -> None:
    """By way of the thread in which the sink lives."""
    sink = BackgroundSink("TensorBoard", lambda: TensorBoardSink(tmp_path))
    sink.rewind(0)
    for step in (1, 2, 3, 4):
        sink.write(step, {"train/loss": 1.0})
    sink.rewind(2)
    for step in (3, 4, 5):
        sink.write(step, {"train/loss": 2.0})
    sink.close("FINISHED")
    assert drawn(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
