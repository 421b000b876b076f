"""What an index may say, and what becomes of a part that is not what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints import make_checkpoint
from tests.mutations import mutations
from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.layout import INDEX_NAME, MARK_NAME, DamagedError, parse_index, render_mark
from toolkit.checkpoint.reader import TensorReader
from toolkit.checkpoint.upload import download_checkpoint, upload_checkpoint
from toolkit.errors import CheckpointError, StorageError


def put_index(checkpoint: Path, fields: Any) -> None:
    data = json.dumps(fields).encode()
    (checkpoint / INDEX_NAME).write_bytes(data)
    (checkpoint / MARK_NAME).write_bytes(render_mark(data))


@settings(max_examples=200, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_changed_index_is_refused_or_means_files_of_its_directory(tmp_path: Path, data: st.DataObject) -> None:
    made = layout.step_dir(tmp_path, step=10)
    whole = made if made.is_dir() else make_checkpoint(tmp_path, 10)
    changed = json.dumps(data.draw(mutations(json.loads((whole / INDEX_NAME).read_bytes())))).encode()
    try:
        index = parse_index(changed, mark=render_mark(changed), origin="index.json")
    except CheckpointError:
        return
    assert all((whole / part.path).parent == whole and part.num_bytes >= 0 for part in index.parts)
    assert type(index.step) is int
    layout.find_gaps(index.parts)
    layout.check_sizes(whole, index.parts)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "", ".", "..", "a/b", "zero\0byte", "back\\slash"])
def test_a_part_lies_in_its_directory(tmp_path: Path, name: str) -> None:
    made = make_checkpoint(tmp_path / "from", 10)
    fields = json.loads((made / INDEX_NAME).read_bytes())
    fields["parts"][0]["path"] = name
    put_index(made, fields)
    assert not layout.is_whole(made)
    with pytest.raises(DamagedError, match="must be a file in the directory of the checkpoint"):
        download_checkpoint(str(made), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_part_that_is_a_link_is_no_part(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path, 10)
    (made / layout.part_name(0)).rename(tmp_path / "elsewhere")
    (made / layout.part_name(0)).symlink_to(tmp_path / "elsewhere")
    assert not layout.is_whole(made)
    with pytest.raises(DamagedError, match="is a link, and a checkpoint holds its parts itself"):
        upload_checkpoint(made, str(tmp_path / "copy"))


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "from", 10)
    (made / layout.part_name(1)).unlink()
    with pytest.raises(DamagedError, match=f"{layout.part_name(1)} is missing"):
        upload_checkpoint(made, str(tmp_path / "copy"))
    with pytest.raises(DamagedError, match=f"{layout.part_name(1)}: there is no such file"):
        download_checkpoint(str(made), tmp_path / "to")
    assert layout.list_steps(tmp_path / "to") == []


def test_a_part_of_zeros_is_named(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path, 10)
    (made / layout.part_name(1)).write_bytes(bytes(1000))
    with pytest.raises(StorageError, match="has checksum"):
        upload_checkpoint(made, str(tmp_path / "copy"))
    with (
        TensorReader(made, layout.read_index(made)) as reader,
        pytest.raises(DamagedError, match=f"{layout.part_name(1)} cannot be read"),
    ):
        reader.read("weight", "1.weight")


def test_retention_removes_no_copy_whose_name_begins_alike(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path, 10)
    for run in ("run", "run#old"):
        upload_checkpoint(made, f"memory://kept/{run}")
    storage.remove_tree("memory://kept/run#old")
    assert storage.exists("memory://kept/run/step-00000010/COMPLETE")
    storage.remove_tree("memory://kept")
