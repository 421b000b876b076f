"""A path is no URL: whatever a file is called, only it is meant."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.names import check_name, names
from toolkit import remote, storage
from toolkit.errors import StorageError

few = settings(max_examples=20, deadline=None, derandomize=True, database=None)


@few
@given(names())
def test_a_local_name_means_itself_alone(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_name(f"{folder}/top", name)


@few
@given(names())
@example("corpus?v=2")
def test_a_name_in_an_object_store_means_itself_alone(name: str) -> None:
    check_name("memory://names/top", name)


@few
@given(names(without=":"))
@example("100%25")
def test_a_name_of_hdfs_is_passed_on_as_it_stands(name: str) -> None:
    fs, path = remote.resolve(f"hdfs://localhost:1/data/{name}/x")
    assert path == fs._strip_protocol(path) == f"/data/{name}/x"


@pytest.mark.parametrize("name", ["../x", "a/../b", ".", "a/./b", "zero\0byte", "half\ud800"])
@pytest.mark.parametrize("service", ["hdfs://localhost:1", "memory://host"])
def test_what_names_nothing_is_refused_in_a_sentence(service: str, name: str) -> None:
    with pytest.raises(StorageError, match="names no file"):
        storage.exists(f"{service}/top/{name}")


def test_hdfs_has_no_colon_in_a_name() -> None:
    with pytest.raises(StorageError, match="no names with a colon"):
        storage.write_atomic("hdfs://localhost:1/a:b", b"")


@pytest.mark.parametrize("name", ["a::b", "a:b", "x#y", "datasets", "~x", "file:x"])
def test_a_relative_name_becomes_absolute(name: str) -> None:
    assert storage.make_absolute(name) == str(Path(name).absolute())


@given(st.text(max_size=12) | st.sampled_from(["../x", "/x", "", ".", "a//b", "a\\b", "a\0b", "train/00000.arrow"]))
@few
def test_an_inner_name_never_leads_out(name: str) -> None:
    if storage.is_inner(name):
        assert os.path.normpath(f"/top/{name}") == f"/top/{name}"
    else:
        parts = name.split("/")
        assert {"", ".", ".."} & set(parts) or set(name) & {"\0", "\\"}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "link/x"])
def test_a_copy_writes_only_below_its_target(tmp_path: Path, name: str) -> None:
    source, target, outside = (tmp_path / folder for folder in ("source", "target", "outside"))
    for folder in (source, target, outside):
        folder.mkdir()
    (target / "link").symlink_to(outside)
    (source / "link").mkdir()
    (source / "link" / "x").write_bytes(b"1")
    with pytest.raises(StorageError, match="does not lie below"):
        storage.copy_files(str(source), str(target), [name], xxh3={})
    assert list(outside.iterdir()) == []


def test_a_copy_replaces_a_link_and_does_not_write_through_it(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"old")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "x").write_bytes(b"new")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "x").symlink_to(tmp_path / "precious")
    storage.copy_files(str(tmp_path / "source"), str(tmp_path / "target"), ["x"], xxh3={})
    assert (tmp_path / "precious").read_bytes() == b"old"
    assert (tmp_path / "target" / "x").read_bytes() == b"new"


def test_a_pipe_is_refused_and_waited_for_by_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(StorageError, match="is a pipe, a socket or a device"):
            storage.read_file(str(path))


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    storage.remove_tree(str(tmp_path / "link"))
    storage.remove_tree(str(tmp_path / "broken"))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there" / "x").read_bytes() == b"1"
