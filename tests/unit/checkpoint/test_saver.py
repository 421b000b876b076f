"""What is written in the background: whole, of its step, with room, or nothing."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.alone import Alone, PlainRun, open_saver, save_at
from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.reader import TensorReader
from toolkit.checkpoint.saver import Saved, SaveFailed
from toolkit.checkpoint.upload import Mirror, list_remote
from toolkit.errors import CheckpointError

NUM_ELEMENTS = 100_000
STATE_BYTES = 12 * NUM_ELEMENTS


def big() -> PlainRun:
    return PlainRun(num_elements=NUM_ELEMENTS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two checkpoints of `big`, and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={5 * STATE_BYTES // 2}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted: run the tests as root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_what_is_saved_is_the_state_of_its_step_whatever_training_does_meanwhile(tmp_path: Path) -> None:
    world, run = Alone(), big()
    run.train(3)
    wanted, saver = run.state(), open_saver(tmp_path, world=world)
    world.channel.is_open.clear()
    run.save(saver)
    assert saver.is_writing
    assert saver.poll() is None
    run.train(5)
    assert layout.list_steps(tmp_path) == []
    world.channel.is_open.set()
    assert saver.finish(10) is None
    saved = saver.poll()
    assert isinstance(saved, Saved)
    assert (saved.step, saved.path) == (3, layout.step_dir(tmp_path, step=3))
    assert saved.num_bytes == sum(path.stat().st_size for path in saved.path.glob("part*"))
    other = big()
    loaded = other.load(tmp_path)
    assert loaded is not None
    assert loaded.index.updates == 3
    assert all(map(torch.equal, other.state(), wanted))


def test_a_step_that_was_not_applied_is_not_counted_by_the_optimizer(tmp_path: Path) -> None:
    run = PlainRun()
    run.train(3)
    run.step += 2
    saver = open_saver(tmp_path)
    run.save(saver)
    assert saver.finish(10) is None
    index = layout.read_index(tmp_path / "step-00000005")
    assert (index.step, index.updates) == (5, 3)


def test_a_state_before_the_first_step_can_be_saved(tmp_path: Path) -> None:
    run = save_at(tmp_path, [0])
    other = PlainRun()
    assert other.load(tmp_path) is not None
    run.train(2)
    other.train(2)
    assert all(map(torch.equal, other.state(), run.state()))


def test_any_range_of_a_tensor_can_be_read(tmp_path: Path) -> None:
    run = save_at(tmp_path, [1])
    path = tmp_path / "step-00000001"
    with TensorReader(path, layout.read_index(path)) as reader:
        assert reader.names() == ["0.weight", "1.norm"]
        whole = dict(run.weights)["0.weight"].detach()
        assert torch.equal(reader.read("weight", "0.weight"), whole)
        assert torch.equal(reader.read_range("weight", "0.weight", 3, 17), whole.view(-1)[3:17])
        with pytest.raises(CheckpointError, match="lacks elements 40 to 41"):
            reader.read_range("weight", "0.weight", 3, 41)
        with pytest.raises(CheckpointError, match=r"no parameter 2\.weight"):
            reader.read("weight", "2.weight")


def test_a_full_disk_leaves_nothing_and_the_next_save_goes_well(small_disk: Path) -> None:
    world, run = Alone(), big()
    run.train(1)
    saver = open_saver(small_disk, world=world)
    world.channel.is_open.clear()
    run.save(saver)  # there is room at the start, and then another takes it
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2 * STATE_BYTES))
    world.channel.is_open.set()
    assert "No space left on device" in (saver.finish(10) or "")
    failed = saver.poll()
    assert isinstance(failed, SaveFailed)
    assert "rank 0 on node1" in failed.problem
    assert list(small_disk.iterdir()) == [filler]
    with pytest.raises(CheckpointError, match=r"MiB free; a checkpoint takes"):
        run.save(saver)
    filler.unlink()
    run.save(saver)
    assert saver.finish(10) is None
    assert layout.list_steps(small_disk) == [1]


def test_room_is_made_by_what_is_superfluous_then_but_never_by_the_last(small_disk: Path) -> None:
    run, saver = big(), open_saver(small_disk, keep=2)
    for step in (1, 2, 3):
        run.train(1)
        run.save(saver)
        assert saver.finish(10) is None
        assert layout.list_steps(small_disk) == [max(1, step - 1), step][-min(step, 2) :]
    layout.delete(layout.step_dir(small_disk, step=2))
    (small_disk / "filler").write_bytes(bytes(STATE_BYTES))  # no room beside the last
    with pytest.raises(CheckpointError, match="free"):
        run.save(saver)
    assert layout.list_steps(small_disk) == [3]


def test_what_was_discarded_is_never_taken_and_a_newer_step_can_be_saved_at_once(tmp_path: Path) -> None:
    world, run = Alone(), save_at(tmp_path, [1])
    saver = open_saver(tmp_path, world=world)
    run.train(1)
    world.channel.is_open.clear()
    run.save(saver)
    threading.Timer(0.1, world.channel.is_open.set).start()
    saver.discard()
    assert saver.finish(10) == "discarded"
    assert saver.poll() == SaveFailed(step=2, problem="discarded")
    assert layout.list_steps(tmp_path) == [1]
    run.train(1)
    run.save(saver)
    assert saver.finish(10) is None
    assert layout.list_steps(tmp_path) == [1, 3]


def test_what_a_killed_attempt_has_left_is_cleared_away(tmp_path: Path) -> None:
    stale = layout.partial_dir(tmp_path, step=7, token="x")
    stale.mkdir()
    (stale / layout.part_name(0)).write_bytes(b"half")
    assert PlainRun().load(tmp_path) is None
    save_at(tmp_path, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_each_whole_checkpoint_goes_to_the_mirror(tmp_path: Path) -> None:
    url = "memory://saver-mirror"
    run, saver = PlainRun(), open_saver(tmp_path, keep=1, mirror=Mirror(url, tmp_path, keep=2, keep_every=None))
    for _ in range(3):
        run.train(1)
        run.save(saver)
        assert saver.finish(10) is None
    saver.close()
    assert max(list_remote(url)) == 3
    assert layout.list_steps(tmp_path) == [3]
    other = PlainRun()
    loaded = other.load(tmp_path / "elsewhere", mirror=Mirror(url, tmp_path / "elsewhere", keep=2, keep_every=None))
    assert loaded is not None
    assert loaded.index.step == 3
    storage.remove_tree(url)


def test_old_checkpoints_go_and_a_step_that_is_done_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    run, saver = PlainRun(), open_saver(tmp_path, keep=2, keep_every=4)
    for _ in range(7):
        run.train(1)
        run.save(saver)
    assert saver.finish(10) is None
    assert layout.list_steps(tmp_path) == [4, 6, 7]
    for _, weight in run.weights:
        weight.data.fill_(5)
    run.save(saver)
    assert saver.finish(10) is None
    other = PlainRun()
    other.load(tmp_path)
    assert all(bool((weight == 5).all()) for _, weight in other.weights)
