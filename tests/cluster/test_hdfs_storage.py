"""Storage on a real HDFS: what is written is what is read, whatever dies meanwhile."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings

from tests.checkpoints import make_checkpoint
from tests.dataset import make_dataset, make_texts, write_jsonl
from tests.devcluster.minihdfs import Cluster
from tests.names import check_name, names
from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.upload import delete_remote, download_checkpoint, list_remote, upload_checkpoint
from toolkit.data.manifest import check_sizes, read_manifest
from toolkit.data.prepare.tokens import load_tokenizer
from toolkit.data.text.sources import find_inputs, read_documents
from toolkit.errors import StorageError

CHECKOUT = Path(__file__).parents[2]


def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside(remote_dir: str) -> None:
    url = f"{remote_dir}/deep/file"
    storage.write_atomic(url, b"old")
    storage.write_atomic(url, b"new and longer")
    with storage.open_file(url, "rb") as file:
        assert file.read() == b"new and longer"
    assert storage.file_sizes(remote_dir) == {"deep/file": 14}


def test_an_error_while_writing_leaves_the_old_file_and_nothing_beside(remote_dir: str) -> None:
    def write_half() -> None:
        with storage.write_beside(f"{remote_dir}/file") as file:
            file.write(b"half")
            raise RuntimeError("in the middle")

    storage.write_atomic(f"{remote_dir}/file", b"old")
    with pytest.raises(RuntimeError, match="in the middle"):
        write_half()
    assert storage.file_sizes(remote_dir) == {"file": 3}


def test_a_file_is_read_from_any_place(remote_dir: str) -> None:
    data = os.urandom(3 << 20)
    storage.write_atomic(f"{remote_dir}/file", data)
    with storage.open_file(f"{remote_dir}/file", "rb") as file:
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
        file.seek(1 << 20)
        assert file.read(10) == data[1 << 20 : (1 << 20) + 10]
        file.seek(0)
        assert file.read() == data


def test_a_tree_goes_there_and_back(tmp_path: Path, remote_dir: str) -> None:
    files = {"a": b"", "b/c": os.urandom(20 << 20), "b/d/e": b"e"}
    for name, data in files.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(data)
    reported: list[int] = []
    sums = storage.copy_files(
        str(tmp_path / "from"), f"{remote_dir}/there", list(files), xxh3={}, report=reported.append
    )
    assert sum(reported) == sum(map(len, files.values()))
    assert storage.file_sizes(f"{remote_dir}/there") == {name: len(data) for name, data in files.items()}
    assert storage.copy_files(f"{remote_dir}/there", str(tmp_path / "back"), list(files), xxh3=sums) == sums
    assert {name: (tmp_path / "back" / name).read_bytes() for name in files} == files
    assert sums["b/c"] == storage.checksum(f"{remote_dir}/there/b/c") == storage.checksum(str(tmp_path / "from/b/c"))


def test_what_is_not_there_is_said_in_one_line(remote_dir: str) -> None:
    for ask in (storage.size, storage.checksum, lambda url: storage.open_file(url, "rb")):
        with pytest.raises(FileNotFoundError) as caught:
            ask(f"{remote_dir}/nothing")
        assert str(caught.value) == f"{remote_dir}/nothing: there is no such file"
    assert storage.list_files(remote_dir) == []
    assert not storage.exists(remote_dir)
    storage.remove_tree(f"{remote_dir}/nothing")


def test_content_that_is_not_the_expected_one_takes_no_name(tmp_path: Path, remote_dir: str) -> None:
    (tmp_path / "file").write_bytes(b"something else")
    with pytest.raises(StorageError, match=r"has checksum .*\n  it must have 0123"):
        storage.copy_file(str(tmp_path / "file"), f"{remote_dir}/file", xxh3="0123")
    assert storage.list_files(remote_dir) == []


def test_a_checkpoint_is_replaced_and_comes_back(tmp_path: Path, remote_dir: str) -> None:
    upload_checkpoint(make_checkpoint(tmp_path / "first", 10), remote_dir)
    made = make_checkpoint(tmp_path / "again", 10)
    url = upload_checkpoint(made, remote_dir)
    assert list_remote(remote_dir) == {10: url}
    back = download_checkpoint(url, tmp_path / "back")
    assert layout.read_index(back) == layout.read_index(made)


def test_a_dataset_and_its_tokenizer_are_read_in_place(tmp_path: Path, remote_dir: str) -> None:
    dataset, manifest = make_dataset(tmp_path)
    storage.copy_files(str(dataset), remote_dir, list(storage.file_sizes(str(dataset))), xxh3={})
    assert read_manifest(remote_dir) == manifest
    assert check_sizes(remote_dir, manifest.shards("train")) == []
    storage.remove_tree(f"{remote_dir}/{manifest.shards('train')[0].path}")
    storage.write_atomic(f"{remote_dir}/{manifest.shards('train')[1].path}", b"short")
    assert [line.split(" ", 1)[1] for line in check_sizes(remote_dir, manifest.shards("train"))] == [
        "is missing",
        f"has 5 bytes instead of {manifest.shards('train')[1].num_bytes}",
    ]
    for name in (remote_dir, f"{remote_dir}/tokenizer.json"):
        assert load_tokenizer(name).get_vocab_size() == manifest.tokenizer.vocab_size


def test_a_corpus_is_read_in_place(tmp_path: Path, remote_dir: str) -> None:
    texts = make_texts(50)
    lines = write_jsonl(tmp_path / "a.jsonl", texts).read_bytes()
    pq.write_table(pa.table({"text": texts}), tmp_path / "b.parquet")
    storage.write_atomic(f"{remote_dir}/a.jsonl", lines)
    storage.write_atomic(f"{remote_dir}/a.jsonl.gz", gzip.compress(lines))
    storage.write_atomic(f"{remote_dir}/a.jsonl.zst", zstandard.compress(lines))
    storage.copy_file(str(tmp_path / "b.parquet"), f"{remote_dir}/b.parquet")
    inputs = find_inputs([remote_dir])
    assert len(inputs) == 4
    for name in inputs:
        assert [document.text for document in read_documents(name, column="text")] == texts


@settings(max_examples=4, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(names(without=":"))
@example("corpus#2")
@example("corpus?v=2")
@example("100%25")
@example("*[ab]{c,d}")
def test_a_name_means_itself_alone(remote_dir: str, name: str) -> None:
    check_name(remote_dir, name, without=":")


def test_of_checkpoints_whose_names_share_a_beginning_each_is_removed_alone(tmp_path: Path, remote_dir: str) -> None:
    made = make_checkpoint(tmp_path, 10)
    for run in ("run", "run#old", "run?old", "run;old"):
        upload_checkpoint(made, f"{remote_dir}/{run}")
    for run in ("run#old", "run?old", "run;old"):
        delete_remote(list_remote(f"{remote_dir}/{run}")[10])
    assert [list(list_remote(f"{remote_dir}/{run}")) for run in ("run", "run#old", "run?old", "run;old")] == [
        [10], [], [], [],
    ]  # fmt: skip


def test_a_user_without_the_right_is_told_so(hdfs: Cluster, remote_dir: str) -> None:
    storage.write_atomic(f"{remote_dir}/file", b"mine")
    script = f"from toolkit import storage; storage.write_atomic({remote_dir + '/other'!r}, b'x')"
    environ = {**os.environ, "HADOOP_USER_NAME": "stranger"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, env=environ, capture_output=True, text=True, check=False
    )
    assert "AccessControlException: Permission denied: user=stranger, access=WRITE" in done.stderr
    assert "HADOOP_USER_NAME" in done.stderr
    assert "at org.apache" not in done.stderr.split("StorageError: ")[1]
