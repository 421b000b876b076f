"""Which checkpoints are trusted, and which are kept."""

from pathlib import Path

import pytest

from toolkit.checkpoint import layout
from toolkit.errors import CheckpointError


def make(directory: Path, step: int) -> Path:
    path = layout.step_dir(directory, step=step)
    path.mkdir(parents=True)
    part = layout.Part(path="part-00000.safetensors", num_bytes=3, xxh3="x", tensors=("0.weight",))
    (path / part.path).write_bytes(b"abc")
    layout.write_index(
        path, layout.Index(step=step, tokens_per_step=1, seed=0, dataset="d", model={"a": 1}, parts=(part,))
    )
    return path


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    assert layout.newest(tmp_path) is None
    make(tmp_path, 10)
    (make(tmp_path, 20) / "COMPLETE").unlink()
    layout.partial_dir(tmp_path, step=30).mkdir()
    assert layout.list_steps(tmp_path) == [10]
    assert layout.newest(tmp_path) == layout.step_dir(tmp_path, step=10)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        layout.read_index(layout.step_dir(tmp_path, step=20))


def test_the_index_comes_back_and_a_cut_file_is_named(tmp_path: Path) -> None:
    path = make(tmp_path, 10)
    index = layout.read_index(path)
    assert (index.step, index.model, index.parts[0].tensors) == (10, {"a": 1}, ("0.weight",))
    assert layout.check_parts(path, index.parts) == []
    (path / "part-00000.safetensors").write_bytes(b"ab")
    assert "2 bytes instead of 3" in layout.check_parts(path, index.parts)[0]


@pytest.mark.parametrize(
    ("keep", "keep_every", "doomed"),
    [(1, None, [10, 20, 30, 40]), (2, None, [10, 20, 30]), (1, 20, [10, 30]), (9, None, [])],
)
def test_the_newest_and_every_nth_are_kept(keep: int, keep_every: int | None, doomed: list[int]) -> None:
    assert layout.doomed_steps([10, 20, 30, 40, 50], keep=keep, keep_every=keep_every) == doomed
