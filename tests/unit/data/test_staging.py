"""A dataset copied from place to place."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataset import make_dataset
from toolkit import storage
from toolkit.data.manifest import Manifest, check_sizes, read_manifest
from toolkit.data.staging import stage
from toolkit.errors import DataError, StorageError

CHECKOUT = Path(__file__).parents[3]
URL = "memory://staged"
ENVIRON = {**os.environ, "PYTHONPATH": str(CHECKOUT)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    return make_dataset(tmp_path_factory.mktemp("staging"))


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    storage.remove_tree(URL)


def ignore(num_bytes: int) -> None:
    pass


def test_a_stopped_staging_goes_on_with_what_is_missing_or_wrong(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    dataset, manifest = made
    first, second, *rest = manifest.shards("train")
    assert rest
    storage.copy_file(str(dataset / first.path), storage.join(URL, first.path))
    storage.write_atomic(storage.join(URL, second.path), b"x" * second.num_bytes)
    storage.write_atomic(storage.join(URL, rest[0].path + ".0123abcd.partial"), b"x")
    totals: list[int] = []
    reported: list[int] = []
    done = stage(str(dataset), URL, begin=totals.append, report=reported.append)
    assert done.kept_bytes == first.num_bytes
    assert totals == [done.kept_bytes + done.copied_bytes] == [sum(reported)]
    assert read_manifest(URL) == manifest
    assert check_sizes(URL, manifest.shards("train")) == []
    again = stage(URL, str(tmp_path / "back"), begin=ignore, report=ignore)
    assert len(storage.list_files(URL)) == again.num_files
    assert again.num_files == len(storage.list_files(str(dataset)))
    assert {name: (tmp_path / "back" / name).read_bytes() for name in storage.file_sizes(str(dataset))} == {
        name: (dataset / name).read_bytes() for name in storage.file_sizes(str(dataset))
    }


def test_a_damaged_source_makes_no_dataset(tmp_path: Path) -> None:
    dataset, manifest = make_dataset(tmp_path)
    damaged = dataset / manifest.shards("train")[0].path
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    with pytest.raises(StorageError, match="has checksum"):
        stage(str(dataset), URL, begin=ignore, report=ignore)
    with pytest.raises(DataError, match="unfinished"):
        read_manifest(URL)


def test_another_dataset_is_not_overwritten(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    dataset, _ = make_dataset(tmp_path, tokens_per_shard=2000)
    stage(str(made[0]), URL, begin=ignore, report=ignore)
    with pytest.raises(DataError, match="holds another dataset"):
        stage(str(dataset), URL, begin=ignore, report=ignore)


def test_the_script_says_what_it_did(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    script = CHECKOUT / "data_prep" / "stage_shards.py"
    command = [sys.executable, str(script), str(made[0]), str(tmp_path / "copy"), "--json"]
    done = subprocess.run(command, cwd=CHECKOUT, env=ENVIRON, capture_output=True, text=True, check=True)
    assert "all as the manifest says" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["kept_bytes"] == 0
    missing = subprocess.run(
        [*command[:2], str(tmp_path), URL], env=ENVIRON, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert "unfinished: it has no manifest.json" in missing.stderr
