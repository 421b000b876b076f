"""Checkpoints at a URL: what is marked is whole, what is not is never trusted."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.upload import download_checkpoint, list_remote, upload_checkpoint
from toolkit.errors import CheckpointError, StorageError

URL = "memory://checkpoints"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    storage.remove_tree(URL)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_checkpoint_goes_there_and_comes_back(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "run", 10)
    url = upload_checkpoint(made, URL)
    assert list_remote(URL)[10] == url == f"{URL}/step-00000010"
    back = download_checkpoint(url, tmp_path / "other")
    assert layout.newest(tmp_path / "other") == back
    assert contents(back) == contents(made)
    assert [path.name for path in back.parent.iterdir()] == [back.name]


def test_only_whole_checkpoints_are_trusted(tmp_path: Path) -> None:
    urls = [upload_checkpoint(make_checkpoint(tmp_path / "run", step), URL) for step in (10, 20, 30, 40)]
    storage.remove_tree(f"{urls[3]}/COMPLETE")
    storage.write_atomic(f"{urls[2]}/part-00001.safetensors", b"cut off")
    assert list_remote(URL) == {10: urls[0], 20: urls[1]}
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        download_checkpoint(urls[3], tmp_path / "other")
    assert list_remote(f"{URL}/nothing") == {}


def test_a_damaged_part_is_refused_in_both_directions(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "run", 10)
    url = upload_checkpoint(made, URL)
    storage.write_atomic(f"{url}/part-00001.safetensors", os.urandom(1000))
    with pytest.raises(StorageError, match=r"part-00001.safetensors: has checksum"):
        download_checkpoint(url, tmp_path / "other")
    assert layout.newest(tmp_path / "other") is None
    (made / "part-00002.safetensors").write_bytes(os.urandom(1000))
    with pytest.raises(StorageError, match=r"part-00002.safetensors: has checksum"):
        upload_checkpoint(made, f"{URL}/again")
    assert list_remote(f"{URL}/again") == {}


def test_an_upload_is_repeated_only_when_the_step_was_done_again(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "run", 10)
    url = upload_checkpoint(made, URL)
    storage.write_atomic(f"{url}/part-00000.safetensors", b"untouched")
    upload_checkpoint(made, URL)
    assert storage.read_file(f"{url}/part-00000.safetensors") == b"untouched"
    again = make_checkpoint(tmp_path / "rolled-back", 10)
    upload_checkpoint(again, URL)
    assert contents(download_checkpoint(url, tmp_path / "other")) == contents(again)
