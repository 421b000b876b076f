"""Which checkpoints are trusted, and which are kept."""

import json
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from toolkit.checkpoint import layout
from toolkit.checkpoint.layout import DamagedError, Part, Slice
from toolkit.errors import CheckpointError


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    assert layout.newest(tmp_path) is None
    make_checkpoint(tmp_path, 10)
    (make_checkpoint(tmp_path, 20) / "COMPLETE").unlink()
    layout.partial_dir(tmp_path, step=30, token="a").mkdir()
    layout.set_aside(make_checkpoint(tmp_path, 40))
    assert layout.list_steps(tmp_path) == [10]
    assert layout.list_unmarked(tmp_path) == [20]
    assert [path.name for path in layout.list_partial(tmp_path)] == ["step-00000030.a.partial"]
    assert [path.name for path in layout.list_damaged(tmp_path)] == ["step-00000040.damaged"]
    assert layout.newest(tmp_path) == layout.step_dir(tmp_path, step=10)
    with pytest.raises(DamagedError, match="no complete checkpoint"):
        layout.read_index(layout.step_dir(tmp_path, step=20))


def test_the_index_comes_back_and_a_cut_file_is_named(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 10)
    index = layout.read_index(path)
    assert (index.step, index.model, index.num_bytes) == (10, {"a": 1}, 3000)
    assert index.parts[0].slices == (Slice(name="0.weight", shape=(8, 10), start=0, stop=80),)
    assert layout.render_index(index) == (path / "index.json").read_bytes()
    assert layout.check_sizes(path, index.parts) == []
    (path / "part-00000.safetensors").write_bytes(b"ab")
    (path / "part-00001.safetensors").unlink()
    told = [line.removeprefix(f"{path}/part-0000") for line in layout.check_sizes(path, index.parts)]
    assert told == ["0.safetensors has 2 bytes instead of 1000", "1.safetensors is missing"]
    assert layout.newest(tmp_path) is None


def test_every_flipped_bit_and_every_cut_of_index_and_marker_is_found(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 10)
    data, mark = (path / "index.json").read_bytes(), (path / "COMPLETE").read_bytes()
    assert layout.parse_index(data, mark=mark, origin="it").step == 10
    damaged = [(data[:length], mark) for length in range(len(data))]
    damaged += [(data, mark[:length]) for length in range(len(mark))]
    damaged += [(flip(data, bit), mark) for bit in range(8 * len(data))]
    damaged += [(data, flip(mark, bit)) for bit in range(8 * len(mark))]
    for one, other in damaged:
        with pytest.raises(DamagedError):
            layout.parse_index(one, mark=other, origin="it")


def flip(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_is_no_damage(version: int) -> None:
    data = json.dumps({"format_version": version}).encode()
    with pytest.raises(CheckpointError, match=f"has format {version}") as caught:
        layout.parse_index(data, mark=b"" if version == 1 else layout.render_mark(data), origin="it")
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize(
    ("keep", "keep_every", "doomed"),
    [(1, None, [10, 20, 30, 40]), (2, None, [10, 20, 30]), (1, 20, [10, 30]), (9, None, [])],
)
def test_the_newest_and_every_nth_are_kept(
    keep: int, keep_every: int | None, doomed: list[int], tmp_path: Path
) -> None:
    steps = [10, 20, 30, 40, 50]
    assert layout.doomed_steps(steps, keep=keep, keep_every=keep_every) == doomed
    for step in steps:
        make_checkpoint(tmp_path, step)
    assert layout.find_doomed(tmp_path, keep=keep, keep_every=keep_every) == doomed


def test_a_checkpoint_that_is_not_whole_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        make_checkpoint(tmp_path, step)
    (tmp_path / "step-00000030" / "index.json").write_bytes(b"{}")
    (tmp_path / "step-00000040" / layout.part_name(1)).unlink()
    assert layout.find_doomed(tmp_path, keep=1, keep_every=None) == [10]
    assert layout.find_doomed(tmp_path, keep=2, keep_every=None) == []


def test_elements_that_nobody_wrote_are_named() -> None:
    def part(*ranges: tuple[int, int]) -> Part:
        slices = tuple(Slice(name="w", shape=(4, 5), start=start, stop=stop) for start, stop in ranges)
        return Part(path="p", num_bytes=0, xxh3="", slices=slices)

    assert layout.find_gaps([part((10, 20)), part((0, 10))]) == []
    assert layout.find_gaps([part((10, 20)), part((0, 9))]) == ["nobody wrote the elements of w from 9 on"]
    assert layout.find_gaps([part((0, 19))]) == ["nobody wrote the elements of w from 19 on"]
