"""What a manifest may say: whatever else it says ends in a sentence, never in a trace or in wrong counts."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dataset import make_dataset
from tests.mutations import mutations
from toolkit.data.manifest import NAME, check_sizes, read_manifest
from toolkit.data.staging import stage
from toolkit.errors import DataError

BELOW = ["../x", "/etc/x", "", ".", "a/../../x", "train//x", "train/./x", "zero\0byte", "back\\slash", "half\ud800"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("manifest"))[0]


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "dataset"))


def put(dataset: Path, fields: Any) -> None:
    (dataset / NAME).write_text(json.dumps(fields), encoding="utf-8")


def get(dataset: Path) -> Any:
    return json.loads((dataset / NAME).read_text(encoding="utf-8"))


@settings(max_examples=150, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_changed_manifest_is_refused_or_says_what_the_disk_holds(
    made: Path, tmp_path: Path, data: st.DataObject
) -> None:
    true = read_manifest(str(made))
    dataset = tmp_path / "dataset"
    if not dataset.is_dir():
        shutil.copytree(made, dataset)
    put(dataset, data.draw(mutations(get(made))))
    try:
        found = read_manifest(str(dataset))
    except DataError:
        return
    assert {(one.path, one.num_bytes) for shards in found.splits.values() for one in shards} <= {
        (one.path, one.num_bytes) for shards in true.splits.values() for one in shards
    } or any(check_sizes(str(dataset), shards) for shards in found.splits.values())


@pytest.mark.parametrize("name", BELOW)
def test_a_shard_lies_below_its_dataset(dataset: Path, tmp_path: Path, name: str) -> None:
    fields = get(dataset)
    fields["splits"]["train"][0]["path"] = name
    put(dataset, fields)
    with pytest.raises(DataError, match="below the dataset"):
        stage(str(dataset), str(tmp_path / "target"), begin=lambda _: None, report=lambda _: None)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("dtype", "banana", "dtype is 'banana', and must be uint16 or uint32"),
        ("dtype", 5, "dtype is 5, and must be a text"),
        ("format_version", 9, "has format 9"),
        ("splits", [], "splits is .*, and must be an object"),
        ("unigram_loss", "low", "unigram_loss is 'low', and must be a number"),
        ("surprise", 1, "surprise is a field that this toolkit does not know"),
    ],
)
def test_a_wrong_field_is_named(dataset: Path, field: str, value: Any, sentence: str) -> None:
    put(dataset, {**get(dataset), field: value})
    with pytest.raises(DataError, match=sentence):
        read_manifest(str(dataset))


@pytest.mark.parametrize("num_tokens", [-1, 0, 10**6, 10**400, 1.5, "many", None, True])
def test_counts_that_the_shard_cannot_hold_are_refused(dataset: Path, num_tokens: Any) -> None:
    fields = copy.deepcopy(get(dataset))
    fields["splits"]["train"][0]["num_tokens"] = num_tokens
    put(dataset, fields)
    with pytest.raises(DataError, match=r"num_tokens|cannot hold"):
        read_manifest(str(dataset))


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"null", b"[" * 100_000, b'{"format_version": NaN}'])
def test_what_is_no_manifest_is_said_so(dataset: Path, content: bytes) -> None:
    (dataset / NAME).write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        read_manifest(str(dataset))


def test_shards_may_be_links(dataset: Path, tmp_path: Path) -> None:
    entry = read_manifest(str(dataset)).shards("train")[0]
    (dataset / entry.path).rename(tmp_path / "elsewhere")
    (dataset / entry.path).symlink_to(tmp_path / "elsewhere")
    assert check_sizes(str(dataset), [entry]) == []
