"""Shards as one stream: what is read, how many stay mapped, what is said when a file changes."""

import os
from pathlib import Path

import numpy as np
import pytest

from toolkit.data.manifest import ShardEntry
from toolkit.data.shard import write_shard
from toolkit.data.stream import TokenStream, count_samples, locate_in
from toolkit.errors import DataError

SIZES = [0, 10, 700, 1, 0, 64, 333, 5]


@pytest.fixture
def shards(tmp_path: Path) -> list[ShardEntry]:
    flat = np.random.default_rng([0, 0, 0]).integers(0, 60_000, size=sum(SIZES))
    pieces = np.split(flat, np.cumsum(SIZES)[:-1])
    names = [f"{number}.arrow" for number in range(len(SIZES))]
    return [
        write_shard(tmp_path / name, [piece], dtype="uint16", name=name)
        for name, piece in zip(names, pieces, strict=True)
    ]


@pytest.fixture
def stream(shards: list[ShardEntry], tmp_path: Path) -> TokenStream:
    return TokenStream(shards, locate_in(str(tmp_path)), dtype="uint16", max_mapped=2)


@pytest.mark.parametrize("seq_len", [1, 7, 64, 1000])
def test_every_token_of_an_epoch_is_predicted_once(stream: TokenStream, seq_len: int) -> None:
    count = count_samples(stream.num_tokens, seq_len=seq_len)
    rows = np.stack(list(stream.samples(np.arange(count), seq_len=seq_len)))
    whole = np.random.default_rng([0, 0, 0]).integers(0, 60_000, size=sum(SIZES))
    assert np.array_equal(rows[:, 1:].ravel(), whole[1 : 1 + count * seq_len])
    assert np.array_equal(rows[:, :-1].ravel(), whole[: count * seq_len])
    assert stream.num_tokens - 1 - count * seq_len < seq_len


def test_a_sample_inside_a_shard_is_no_copy(stream: TokenStream) -> None:
    view = next(stream.samples(np.array([2]), seq_len=64))
    assert not view.flags.owndata
    assert not view.flags.writeable


def test_only_the_shards_read_last_stay_mapped(stream: TokenStream, tmp_path: Path) -> None:
    for start in (0, 10, 720, 780):
        stream.read(start, 5)
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    names = [f"{number}.arrow" for number in range(len(SIZES)) if f"{tmp_path}/{number}.arrow" in mapped]
    assert names == ["5.arrow", "6.arrow"]


def test_a_dataset_elsewhere_is_refused() -> None:
    with pytest.raises(DataError, match="copy the dataset first"):
        locate_in("hdfs://name/data")


@pytest.mark.parametrize("num_bytes", [None, 100])
def test_a_shard_that_vanished_or_shrank_is_named(
    stream: TokenStream, shards: list[ShardEntry], tmp_path: Path, num_bytes: int | None
) -> None:
    path = tmp_path / shards[2].path
    if num_bytes is None:
        path.unlink()
    else:
        os.truncate(path, num_bytes)
    assert len(stream.read(0, 10)) == 10
    with pytest.raises(DataError, match=r"2\.arrow.*\n.*must not change while runs read it"):
        list(stream.samples(np.array([1]), seq_len=64))


def test_a_shard_that_was_made_again_is_named(stream: TokenStream, shards: list[ShardEntry], tmp_path: Path) -> None:
    name = shards[2].path
    write_shard(tmp_path / name, [np.arange(100), np.arange(500)], dtype="uint16", name=name)
    with pytest.raises(DataError, match=r"2\.arrow has \d+ bytes instead of"):
        stream.read(20, 10)
