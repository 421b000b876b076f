"""Remote shards on local disk: whole or not at all, once a node, within the bound."""

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from tests.fetch import start_fetch
from toolkit import storage
from toolkit.config.schema import DataSection
from toolkit.data.cache import CacheFullError, ShardCache, open_cache
from toolkit.data.manifest import ShardEntry
from toolkit.errors import DataError, StorageError

SIZE = 1 << 20


def make_entry(data: bytes, path: str) -> ShardEntry:
    xxh3 = xxhash.xxh3_128_hexdigest(data)
    return ShardEntry(path=path, num_tokens=0, num_documents=0, num_bytes=len(data), xxh3=xxh3)


@pytest.fixture
def shards() -> Iterator[tuple[str, list[ShardEntry]]]:
    """Put eight shards of 1 MiB on a file system in memory."""
    url, entries = "memory://shards", []
    for number in range(8):
        data = os.urandom(SIZE)
        entries.append(make_entry(data, f"train/{number:05d}.arrow"))
        storage.write_atomic(storage.join(url, entries[-1].path), data)
    yield url, entries
    storage.remove_tree(url)


def age(path: Path, *, seconds: float) -> None:
    """Let a shard look unused for some time."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "waited for 20 s"
        time.sleep(0.01)


def test_a_shard_is_fetched_once(tmp_path: Path, shards: tuple[str, list[ShardEntry]]) -> None:
    url, entries = shards
    locate = ShardCache(tmp_path / "cache", max_bytes=8 * SIZE).locate_in(url)
    path = locate(entries[0])
    assert storage.checksum(str(path)) == entries[0].xxh3
    storage.remove_tree(url)
    assert locate(entries[0]) == path
    assert ShardCache(tmp_path / "cache", max_bytes=8 * SIZE).locate_in(url)(entries[0]) == path
    with pytest.raises(FileNotFoundError, match="00001"):
        locate(entries[1])


def test_other_content_than_the_manifests_is_refused(tmp_path: Path, shards: tuple[str, list[ShardEntry]]) -> None:
    url, entries = shards
    storage.write_atomic(storage.join(url, entries[0].path), os.urandom(SIZE))
    with pytest.raises(StorageError, match="has checksum"):
        ShardCache(tmp_path, max_bytes=8 * SIZE).locate_in(url)(entries[0])
    assert [path.name for path in tmp_path.iterdir()] == ["room.lock"]


def test_processes_that_want_the_same_shard_fetch_it_once(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    entry = make_entry(data, "shard")
    os.mkfifo(tmp_path / "shard")  # holds the fetching one until the others wait
    fetching = [start_fetch(tmp_path / "cache", str(tmp_path / "shard"), entry) for _ in range(3)]
    (tmp_path / "shard").write_bytes(data)
    told = [process.communicate(timeout=60)[1] for process in fetching]
    assert [process.returncode for process in fetching] == [0, 0, 0], told
    assert sum("fetched" in text for text in told) == 1


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    entry = make_entry(data, "shard")
    os.mkfifo(tmp_path / "shard")
    killed = start_fetch(tmp_path / "cache", str(tmp_path / "shard"), entry)
    with (tmp_path / "shard").open("wb") as pipe:
        pipe.write(data[: SIZE // 2])
        pipe.flush()
        wait_until(lambda: any(path.suffix == ".partial" for path in (tmp_path / "cache").iterdir()))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert killed.stderr
    killed.stderr.close()
    (tmp_path / "whole").write_bytes(data)
    path = ShardCache(tmp_path / "cache", max_bytes=SIZE).fetch(str(tmp_path / "whole"), entry)
    assert path.read_bytes() == data
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".arrow", ".lock"}


def test_the_longest_unused_shard_makes_room(tmp_path: Path, shards: tuple[str, list[ShardEntry]]) -> None:
    url, entries = shards
    locate = ShardCache(tmp_path, max_bytes=3 * SIZE).locate_in(url)
    paths = [locate(entry) for entry in entries[:3]]
    for path, seconds in zip(paths, (300, 500, 400), strict=True):
        age(path, seconds=seconds)
    locate(entries[3])
    assert [path.exists() for path in paths] == [True, False, True]


def test_what_is_in_use_is_never_deleted(tmp_path: Path, shards: tuple[str, list[ShardEntry]]) -> None:
    url, entries = shards
    locate = ShardCache(tmp_path, max_bytes=2 * SIZE).locate_in(url)
    mapped, fresh = (locate(entry) for entry in entries[:2])
    age(mapped, seconds=500)
    with mapped.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        with pytest.raises(CacheFullError, match=r"(?s)no room for a shard of 1.0 MiB.*data.cache_gib"):
            locate(entries[2])
        assert mapped.exists()
    locate(entries[2])
    assert not mapped.exists()
    assert fresh.exists()


def test_shards_are_there_before_they_are_used(tmp_path: Path, shards: tuple[str, list[ShardEntry]]) -> None:
    url, entries = shards
    cache = ShardCache(tmp_path, max_bytes=8 * SIZE)
    locate = cache.locate_in(url)

    def is_here(number: int) -> bool:
        return (tmp_path / f"{entries[number].xxh3}-{SIZE}.arrow").exists()

    cache.prefetch([(storage.join(url, entry.path), entry) for entry in entries])
    wait_until(lambda: is_here(4))
    assert not is_here(6)  # half of the cache is for what is to come
    locate(entries[3])
    wait_until(lambda: is_here(7))
    cache.close()


def test_trouble_while_fetching_ahead_is_met_only_by_who_needs_the_shard(
    tmp_path: Path, shards: tuple[str, list[ShardEntry]], caplog: pytest.LogCaptureFixture
) -> None:
    url, entries = shards
    storage.remove_tree(storage.join(url, entries[1].path))
    cache = ShardCache(tmp_path, max_bytes=8 * SIZE)
    cache.prefetch([(storage.join(url, entry.path), entry) for entry in entries])
    wait_until(lambda: "cannot fetch ahead" in caplog.text)
    locate = cache.locate_in(url)
    locate(entries[0])
    with pytest.raises(FileNotFoundError):
        locate(entries[1])
    cache.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(DataError, match="chmod 700"):
        ShardCache(tmp_path, max_bytes=SIZE)


def test_the_place_and_the_bound_come_from_the_configuration_or_the_job(tmp_path: Path) -> None:
    entry = make_entry(b"x" * 100, "shard")
    open_cache(DataSection(), {"SLURM_TMPDIR": str(tmp_path / "job"), "TMPDIR": "/nowhere"}, [entry])
    open_cache(DataSection(cache_dir=str(tmp_path / "own")), {"TMPDIR": "/nowhere"}, [entry])
    for place in ("job", "own"):
        assert [path.name for path in (tmp_path / place).iterdir()] == [f"toolkit-shards-{os.getuid()}"]
    too_small = DataSection(cache_dir=str(tmp_path / "own"), cache_gib=1e-8)
    with pytest.raises(DataError, match=r"data.shuffle=true"):
        open_cache(too_small, {}, [entry])


def test_a_place_in_memory_is_refused() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    with pytest.raises(DataError, match=r"lies in memory(.|\n)*data.cache_dir"):
        open_cache(DataSection(), {"TMPDIR": "/dev/shm"}, [])
