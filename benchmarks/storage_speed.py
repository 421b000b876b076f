"""Our copies to and from HDFS and through the shard cache, against hdfs-native by hand and a local copy.

Every way moves the same random files, interleaved, on the HDFS of --url or on a private one that is started here
(see tests/devcluster/minihdfs.py: it needs Java, and `make test` once). All bring local files to the disk (fsync);
ours compares checksums and renames besides. Printed are medians of MB/s by the clock, and of ratios of pairs: how
many times as fast by the clock, and with how many times the CPU seconds of this process.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hdfs_native
import xxhash

from toolkit import storage
from toolkit.data.cache import ShardCache
from toolkit.data.manifest import ShardEntry

MINIHDFS = Path(__file__).parents[1] / "tests" / "devcluster" / "minihdfs.py"
PIECE = 1 << 20


def main() -> None:
    """Time each way in turn and print a table, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="HDFS directory to work in, hdfs://HOST:PORT/DIR (default: a private HDFS)")
    parser.add_argument("--mb", type=int, default=128, help="size of the file (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storage-speed") as made, open_hdfs(asked.url, Path(made)) as url:
        figures = compare(url, Path(made), num_bytes=asked.mb * 10**6, rounds=asked.rounds)
    for name, figure in figures.items():
        times = f"{figure['speed_ratio']:.2f} x the speed, {figure['cpu_ratio']:.2f} x the CPU"
        print(f"{name:<22} {figure['mb_per_s']:7.0f} MB/s   {times} of {figure['against']}")
    if asked.json:
        print(json.dumps(figures))


@contextmanager
def open_hdfs(url: str | None, work_dir: Path) -> Iterator[str]:
    """Give a directory on the HDFS asked for, or start one."""
    if url is None:
        cluster_dir = work_dir / "hdfs"
        up = [sys.executable, str(MINIHDFS), "up", str(cluster_dir)]
        told = subprocess.run(up, check=True, stdout=subprocess.PIPE, text=True).stdout
        url = told.split()[0]
    directory = storage.join(url, f"storage-speed-{uuid.uuid4().hex}")
    try:
        yield directory
        storage.remove_tree(directory)
    finally:
        if (work_dir / "hdfs").is_dir():
            subprocess.run([sys.executable, str(MINIHDFS), "down", str(work_dir / "hdfs")], check=True)


def compare(url: str, work_dir: Path, *, num_bytes: int, rounds: int) -> dict[str, dict[str, float | str]]:
    """Run every way once a round, in turns."""
    local = work_dir / "file"
    local.write_bytes(os.urandom(num_bytes))
    entry = ShardEntry(
        path="file", num_tokens=0, num_documents=0, num_bytes=num_bytes, xxh3=storage.checksum(str(local))
    )
    ways: dict[str, Callable[[], object]] = {
        "write, hdfs-native": lambda: write_plain(local, f"{url}/plain"),
        "write, ours": lambda: storage.copy_file(str(local), f"{url}/file"),
        "read, hdfs-native": lambda: read_plain(f"{url}/file", work_dir / "plain"),
        "read, ours": lambda: storage.copy_file(f"{url}/file", str(work_dir / "ours"), xxh3=entry.xxh3),
        "read through the cache": lambda: fetch(work_dir / "cache", url, entry),
        "local, shutil": lambda: copy_plain(local, work_dir / "copy"),
        "local, ours": lambda: storage.copy_file(str(local), str(work_dir / "ours")),
    }
    against = {
        "write, ours": "write, hdfs-native",
        "read, ours": "read, hdfs-native",
        "read through the cache": "read, hdfs-native",
        "local, ours": "local, shutil",
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    ways["write, ours"]()  # what the reading ways read
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(ways):
            spent[name].append(time_once(ways[name]))
    figures: dict[str, dict[str, float | str]] = {}
    for name, times in spent.items():
        pairs = list(zip(times, spent[against.get(name, name)], strict=True))
        figures[name] = {
            "mb_per_s": num_bytes / statistics.median(wall for wall, _ in times) / 1e6,
            "speed_ratio": statistics.median(other[0] / own[0] for own, other in pairs),
            "cpu_ratio": statistics.median(own[1] / other[1] for own, other in pairs),
            "against": against.get(name, name),
        }
    return figures


def time_once(act: Callable[[], object]) -> tuple[float, float]:
    """Give the seconds by the clock and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - wall, time.process_time() - cpu


def write_plain(source: Path, url: str) -> None:
    """Write as a person would by hand."""
    client, path = open_client(url)
    with source.open("rb") as file, client.create(path, hdfs_native.WriteOptions(overwrite=True)) as target:
        while piece := file.read(PIECE):
            target.write(piece)


def read_plain(url: str, target: Path) -> None:
    """Read as a person would by hand."""
    client, path = open_client(url)
    with client.read(path) as source, target.open("wb") as file:
        while piece := source.read(PIECE):
            file.write(piece)
        os.fsync(file.fileno())


def copy_plain(source: Path, target: Path) -> None:
    """Copy as a person would by hand."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def open_client(url: str) -> tuple[hdfs_native.Client, str]:
    """Split a URL into a client and a path."""
    scheme, _, rest = url.partition("://")
    place, _, path = rest.partition("/")
    return hdfs_native.Client(f"{scheme}://{place}"), f"/{path}"


def fetch(cache_dir: Path, url: str, entry: ShardEntry) -> None:
    """Fetch into an empty cache, and compare what is there."""
    shutil.rmtree(cache_dir, ignore_errors=True)
    path = ShardCache(cache_dir, max_bytes=2 * entry.num_bytes).locate_in(url)(entry)
    assert xxhash.xxh3_128_hexdigest(path.read_bytes()) == entry.xxh3, "the cache gave other content"


if __name__ == "__main__":
    main()
