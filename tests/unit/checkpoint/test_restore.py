"""Whatever happened to one file, it is named, and the newest whole checkpoint is taken."""

import errno
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.alone import Alone, PlainRun, save_at
from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.upload import Mirror, list_remote
from toolkit.errors import CheckpointError, StorageError, TryAgainError

URL = "memory://mirror"
FILES = ["part-00000.safetensors", "index.json", "COMPLETE"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 2 and 4."""
    directory = tmp_path_factory.mktemp("pair")
    save_at(directory, [2, 4])
    return directory


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    storage.remove_tree(URL)


def damage(path: Path, how: Any) -> None:
    kind, place = how
    data = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
        return
    if kind == "cut":
        data = data[: int(place * len(data))]
    elif kind == "longer":
        data += b"\0"
    else:
        bit = int(place * 8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(FILES),
    how=st.tuples(
        st.sampled_from(["flipped", "cut", "flipped", "missing", "longer"]), st.floats(0, 1, exclude_max=True)
    ),
)
def test_any_damage_to_any_file_is_named_and_the_older_one_is_taken(
    name: str, how: Any, pair: Path, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    shutil.copytree(pair, tmp_path)
    damage(tmp_path / "step-00000004" / name, how)
    run, wanted = PlainRun(), PlainRun()
    wanted.train(2)
    loaded = run.load(tmp_path)
    assert loaded is not None
    assert loaded.index.step == 2
    assert name in " ".join(loaded.passed_over)
    assert all(map(torch.equal, run.state(), wanted.state()))
    assert layout.list_steps(tmp_path) == [2]
    assert [path.name for path in layout.list_damaged(tmp_path)] == ["step-00000004.damaged"]


@pytest.mark.parametrize("name", FILES)
def test_a_run_never_begins_anew_when_all_are_damaged(name: str, pair: Path, tmp_path: Path) -> None:
    assert PlainRun().load(tmp_path) is None
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    for step in (2, 4):
        damage(layout.step_dir(tmp_path, step=step) / name, ("flipped", 0.5))
    for _ in range(2):  # nor at the next attempt
        with pytest.raises(CheckpointError, match=r"no whole checkpoint, only step-00000002.damaged"):
            PlainRun().load(tmp_path)


def test_a_checkpoint_of_another_run_is_refused_and_stays(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    path = layout.step_dir(tmp_path, step=4)
    layout.write_index(path, layout.Index(**{**fields(layout.read_index(path)), "seed": 5}))
    with pytest.raises(CheckpointError, match=r"another run\n  seed: 5 then, 0 now"):
        PlainRun().load(tmp_path)
    assert layout.list_steps(tmp_path) == [2, 4]


def fields(index: layout.Index) -> dict[str, Any]:
    return {name: getattr(index, name) for name in index.__slots__}


def test_the_mirrors_copy_of_a_damaged_checkpoint_is_preferred_to_an_older_one(pair: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(pair, here)
    Mirror(URL, here, keep=2, keep_every=None).close(4)
    damage(here / "step-00000004" / FILES[0], ("flipped", 0.9))
    run = PlainRun()
    loaded = run.load(here, mirror=Mirror(URL, here, keep=2, keep_every=None))
    assert loaded is not None
    assert (loaded.index.step, layout.list_steps(here)) == (4, [2, 4])
    assert FILES[0] in loaded.passed_over[0]


def test_a_damaged_copy_is_passed_over_where_there_is_something_here(pair: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(pair, here)
    Mirror(URL, here, keep=2, keep_every=None).close(4)
    storage.write_atomic(f"{URL}/step-00000004/{FILES[0]}", os.urandom(200))
    damage(here / "step-00000004" / FILES[0], ("cut", 0.9))
    loaded = PlainRun().load(here, mirror=Mirror(URL, here, keep=2, keep_every=None))
    assert loaded is not None
    assert loaded.index.step == 2


def test_all_copies_damaged_and_nothing_here_is_an_error(pair: Path, tmp_path: Path) -> None:
    Mirror(URL, pair, keep=2, keep_every=None).close(4)
    content = storage.read_file(f"{URL}/step-00000004/{FILES[0]}")
    storage.write_atomic(f"{URL}/step-00000004/{FILES[0]}", content[:-1] + b"?")
    with pytest.raises(TryAgainError, match="has checksum"):  # a copy may have been cut off on its way
        PlainRun().load(tmp_path, mirror=Mirror(URL, tmp_path, keep=2, keep_every=None))


@pytest.mark.parametrize("up_to", [2, 3])
def test_going_back_takes_an_older_one_and_forgets_what_came_after(up_to: int, pair: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(pair, here)
    for step in (2, 4):
        Mirror(URL, here, keep=9, keep_every=None).close(step)
    mirror = Mirror(URL, here, keep=2, keep_every=None)
    loaded = PlainRun().load(here, mirror=mirror, up_to=up_to)
    assert loaded is not None
    assert loaded.index.step == 2
    assert layout.list_steps(here) == [2] == list(list_remote(URL))


def test_going_back_to_before_the_first_checkpoint_is_no_reason_to_delete_any(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    assert PlainRun().load(tmp_path, up_to=1) is None
    assert layout.list_steps(tmp_path) == [2, 4]


class TroubledNode(Alone):
    """Rank 1 of two complains of a file that rank 0, which is us, finds sound."""

    size = 2

    def gather(self, value: Any) -> list[Any]:
        if isinstance(value, tuple):
            return [value, ({FILES[0]: f"{FILES[0]} cannot be read: stale file handle"}, None)]
        return [value, None]


def test_a_node_that_cannot_read_condemns_no_checkpoint(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    with pytest.raises(TryAgainError, match=r"rank 1 on node1: .*stale file handle"):
        PlainRun().load(tmp_path, world=TroubledNode())
    assert layout.list_steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("name", FILES)
def test_a_server_that_is_away_damages_no_checkpoint(
    name: str, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    plain = io.open  # no file system here loses its server: its word for it is put into Python's mouth

    def _open(file: Any, *args: Any, **options: Any) -> Any:
        if Path(str(file)).name == name:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(file))
        return plain(file, *args, **options)

    monkeypatch.setattr(io, "open", _open)
    monkeypatch.setattr("builtins.open", _open)
    with pytest.raises(TryAgainError, match="Stale file handle"):
        PlainRun().load(tmp_path)
    assert layout.list_steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("trouble", [StorageError("hdfs://x does not answer"), OSError(116, "Stale file handle")])
def test_a_file_system_that_does_not_answer_asks_for_another_try(trouble: Exception, tmp_path: Path) -> None:
    class Silent:
        def restore(self, *, up_to: int | None) -> None:
            raise trouble

    with pytest.raises(TryAgainError, match=r"answer|Stale"):  # CheckpointError would end the run for good
        PlainRun().load(tmp_path, mirror=Silent())
