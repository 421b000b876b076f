"""A process that fetches one shard into a cache, for tests that start several or kill one."""

import logging
import subprocess
import sys
from pathlib import Path

from toolkit import storage
from toolkit.data.cache import ShardCache
from toolkit.data.manifest import ShardEntry

CHECKOUT = Path(__file__).parents[1]


def start_fetch(cache_dir: Path, url: str, entry: ShardEntry) -> subprocess.Popen[str]:
    """Start it; it writes a line with `fetched` to its standard error when the shard was not there yet."""
    command = [sys.executable, "-m", "tests.fetch", str(cache_dir), url, entry.xxh3, str(entry.num_bytes)]
    return subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)


def main() -> None:
    storage._refuse_stream = lambda url: None  # to the tests, a pipe stands for a file system that is slow
    logging.basicConfig(level=logging.INFO)
    cache_dir, url, xxh3, num_bytes = sys.argv[1:]
    entry = ShardEntry(path="", num_tokens=0, num_documents=0, num_bytes=int(num_bytes), xxh3=xxh3)
    ShardCache(Path(cache_dir), max_bytes=1 << 30).fetch(url, entry)


if __name__ == "__main__":
    main()
