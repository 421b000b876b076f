"""Remote shards on node-local disk: fetched once a node, ahead of their use, within a bound.

CACHE_DIR/
  <xxh3>-<num_bytes>.arrow            a whole shard: it takes this name after its checksum was compared
  <xxh3>-<num_bytes>.arrow.claim      locked by the process that fetches it; the kernel unlocks what was killed
  <xxh3>-<num_bytes>.arrow.*.partial  what it has so far
  room.lock                           shared while a shard is looked up, exclusive while shards are deleted

Names come from content, so datasets and runs share what is equal. A shard is in use while any process has it
mapped, or for a minute after it was looked up; deleting it even then would hurt nobody but free no space.
"""

import fcntl
import itertools
import logging
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit import storage
from toolkit.config.schema import DataSection
from toolkit.data.manifest import ShardEntry
from toolkit.errors import DataError, StorageError
from toolkit.storage import say_bytes

log = logging.getLogger(__name__)

_NAME = re.compile(r"([0-9a-f]+)-(\d+)\.arrow")
_FRESH_S = 60.0
_CLAIM_WAIT_S = 1800.0
_POLL_S = 0.05
_LOCK_WAIT_S = 60.0
_RETRY_S = 30.0
_STOP_S = 5.0
_KEPT_FREE = 0.1  # part of the disk's free space that is left to others where data.cache_gib is open


class CacheFullError(StorageError):
    """What is in use and what is wanted do not fit together."""


def open_cache(data: DataSection, environ: Mapping[str, str], entries: Sequence[ShardEntry]) -> "ShardCache":
    """Open the cache of this node for shards that a run reads.

    Args:
        data: says where and how large; what is open is chosen here.
        environ: variables of the job.
        entries: the shards.

    Raises:
        DataError: there is no place for it, or it is too small for them.
    """
    cache_dir = _choose_dir(data, environ)
    if data.cache_gib is not None:
        max_bytes = int(data.cache_gib * 2**30)
    else:
        cached = sum(stat.st_size for _, stat in _list_shards(cache_dir)) if cache_dir.is_dir() else 0
        max_bytes = int((storage.free_bytes(cache_dir) + cached) * (1 - _KEPT_FREE))
    needed = sum(entry.num_bytes for entry in entries)
    if data.shuffle and needed > max_bytes:
        raise DataError(
            f"the cache {cache_dir} may take {say_bytes(max_bytes)}, the shards have {say_bytes(needed)}\n"
            "  with data.shuffle=true every step reads from anywhere, so all of them must fit on the node\n"
            "  raise data.cache_gib, set data.cache_dir to a larger disk, or set data.shuffle=false"
        )
    return ShardCache(cache_dir, max_bytes=max_bytes)


def _choose_dir(data: DataSection, environ: Mapping[str, str]) -> Path:
    scratch = data.cache_dir or environ.get("SLURM_TMPDIR") or environ.get("TMPDIR") or tempfile.gettempdir()
    if data.cache_dir is None and _is_memory(Path(scratch)):
        raise DataError(
            f"{scratch} lies in memory, and neither SLURM_TMPDIR nor TMPDIR names a disk of this node\n"
            "  remote shards are kept on a disk of the node that reads them\n  set data.cache_dir to one"
        )
    return Path(scratch) / f"toolkit-shards-{os.getuid()}"


def _is_memory(path: Path) -> bool:
    """Whether a directory lies in the machine's memory (tmpfs); unknown where there is no /proc."""
    mounts = Path("/proc/self/mounts")
    fields = [line.split() for line in mounts.read_text().splitlines()] if mounts.is_file() else []
    holding = [(len(place), kind) for _, place, kind, *_ in fields if path.resolve().is_relative_to(place)]
    return bool(holding) and max(holding)[1] in {"tmpfs", "ramfs"}


class ShardCache:
    """Gives local files of remote shards; every rank of a node opens its own on the same directory."""

    def __init__(self, cache_dir: Path, *, max_bytes: int) -> None:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = cache_dir.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise DataError(
                f"{cache_dir} can be written by others\n  shards are trusted by their name there\n"
                f"  chmod 700 {cache_dir}, or set data.cache_dir to a directory of your own"
            )
        self._dir = cache_dir.resolve()  # as the kernel names mapped files
        self._max_bytes = max_bytes
        self._is_closed = threading.Event()
        self._prefetcher: _Prefetcher | None = None

    def locate_in(self, dataset_url: str) -> Callable[[ShardEntry], Path]:
        """Give the function that finds a dataset's shards: fetched when they are not here yet."""

        def locate(entry: ShardEntry) -> Path:
            path = self.fetch(storage.join(dataset_url, entry.path), entry)
            if self._prefetcher:
                self._prefetcher.note_use(entry)
            return path

        return locate

    def fetch(self, url: str, entry: ShardEntry) -> Path:
        """Give the local copy of a shard.

        Raises:
            FileNotFoundError: there is no such shard.
            CacheFullError: there is no room for it.
            StorageError: it cannot be had, or is not what the manifest says.
        """
        path = self._dir / f"{entry.xxh3}-{entry.num_bytes}.arrow"
        if self._look_up(path):
            return path
        with _claim(path.with_name(path.name + ".claim"), is_wanted=lambda: not self.is_closed):
            if not self._look_up(path):  # else another rank has fetched it meanwhile
                _drop_half(path)  # an owner of the claim was killed
                self._make_room(entry.num_bytes)
                started = time.monotonic()
                storage.copy_file(url, str(path), xxh3=entry.xxh3, report=self._raise_closed)
                log.info("fetched %s in %.1f s", url, time.monotonic() - started)
        return path

    def mappable(self, entries: Sequence[ShardEntry]) -> int:
        """Count the shards that a reader may keep mapped, so that others can still come and go."""
        if sum(entry.num_bytes for entry in entries) <= self._max_bytes:
            return len(entries)
        return max(1, self._max_bytes // 4 // max(entry.num_bytes for entry in entries))

    def prefetch(self, shards: Sequence[tuple[str, ShardEntry]]) -> None:
        """Fetch shards (each with its URL) in the background, in the order of their first use; one rank a node does."""
        assert self._prefetcher is None, "a cache prefetches one order"
        self._prefetcher = _Prefetcher(self, shards, ahead_bytes=self._max_bytes // 2)
        self._prefetcher.start()

    def close(self) -> None:
        """End the background thread; a shard that is on its way is dropped."""
        self._is_closed.set()
        if self._prefetcher:
            self._prefetcher.stop()

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is wanted."""
        return self._is_closed.is_set()

    def _raise_closed(self, num_bytes: int) -> None:
        if num_bytes > 0 and self.is_closed:
            raise StorageError("the cache was closed while a shard was on its way")

    def _look_up(self, path: Path) -> bool:
        """Whether a shard is here; then it counts as used now."""
        with _lock(self._dir / "room.lock", fcntl.LOCK_SH), suppress(FileNotFoundError):
            os.utime(path)
            return True
        return False

    def _make_room(self, num_bytes: int) -> None:
        """Delete shards, the longest unused first, until another one fits; its claim exists already."""
        with _lock(self._dir / "room.lock", fcntl.LOCK_EX):
            _clean_after_killed(self._dir)
            used = sum(_claimed_bytes(claim) for claim in self._dir.glob("*.claim"))
            shards = sorted(_list_shards(self._dir), key=lambda shard: shard[1].st_mtime)
            used += sum(stat.st_size for _, stat in shards)
            mapped = _mapped_files(self._dir)
            for path, stat in shards:
                if used <= self._max_bytes and storage.free_bytes(self._dir) >= num_bytes:
                    break
                if path.name not in mapped and time.time() - stat.st_mtime > _FRESH_S:
                    path.unlink()
                    used -= stat.st_size
        free = storage.free_bytes(self._dir)
        if used > self._max_bytes or free < num_bytes:
            raise CacheFullError(
                f"{self._dir} has no room for a shard of {say_bytes(num_bytes)}: others that are in use or on "
                f"their way take {say_bytes(used - num_bytes)} of {say_bytes(self._max_bytes)}, {say_bytes(free)} are "
                "free on the disk\n"
                "  all shards that are read between two visits of one must fit; with data.shuffle these are all\n"
                "  raise data.cache_gib, or set data.cache_dir to a larger disk"
            )


class _Prefetcher:
    """One thread that fetches in order, at most `ahead_bytes` ahead of the shard that was used last."""

    def __init__(self, cache: ShardCache, shards: Sequence[tuple[str, ShardEntry]], *, ahead_bytes: int) -> None:
        self._cache = cache
        self._shards = shards
        self._places = {entry.xxh3: place for place, (_, entry) in reversed(list(enumerate(shards)))}
        self._ends = [0, *itertools.accumulate(entry.num_bytes for _, entry in shards)]
        self._ahead_bytes = ahead_bytes
        self._last_used = 0
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._trouble: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; the thread is left alone when a service keeps it waiting."""
        with self._moved:
            self._moved.notify_all()
        self._thread.join(timeout=_STOP_S)

    def note_use(self, entry: ShardEntry) -> None:
        """Hear which shard is used; a bug in the thread is raised here."""
        if self._trouble:
            raise self._trouble
        with self._moved:
            self._last_used = max(self._last_used, self._places.get(entry.xxh3, 0))
            self._moved.notify_all()

    def _run(self) -> None:
        try:
            for place, (url, entry) in enumerate(self._shards):
                self._wait_for_turn(place)
                while not self._cache.is_closed and not self._try_to_fetch(url, entry):
                    self._wait_for_change()
        except BaseException as error:  # told to the thread that reads: see note_use
            self._trouble = error

    def _wait_for_turn(self, place: int) -> None:
        def is_turn() -> bool:
            return self._cache.is_closed or self._ends[place] - self._ends[self._last_used] <= self._ahead_bytes

        with self._moved:
            self._moved.wait_for(is_turn)

    def _wait_for_change(self) -> None:
        with self._moved:
            before = self._last_used
            self._moved.wait_for(lambda: self._cache.is_closed or self._last_used != before, timeout=_RETRY_S)

    def _try_to_fetch(self, url: str, entry: ShardEntry) -> bool:
        try:
            self._cache.fetch(url, entry)
        except (StorageError, FileNotFoundError) as error:
            # Whoever needs the shard meets the same trouble in its own call, and stops there.
            if not self._cache.is_closed:
                log.warning("cannot fetch ahead: %s", error)
            return False
        return True


@contextmanager
def _lock(path: Path, kind: int) -> Iterator[None]:
    """Hold a lock for a moment; others hold it as shortly."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _try_lock(descriptor, kind):
            if time.monotonic() > deadline:
                raise StorageError(f"{path}: locked for {_LOCK_WAIT_S:.0f} s\n  a process is stopped\n  end it")
            time.sleep(_POLL_S * random.random())
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _claim(path: Path, *, is_wanted: Callable[[], bool]) -> Iterator[None]:
    """Be the only one who fetches a shard; wait while another process does."""
    deadline = time.monotonic() + _CLAIM_WAIT_S
    while (descriptor := _try_claim(path)) is None:
        if not is_wanted():
            raise StorageError("the cache was closed while another process fetched a shard")
        if time.monotonic() > deadline:
            raise StorageError(
                f"{path}: another process of this node has been fetching the shard for {_CLAIM_WAIT_S:.0f} s\n"
                "  it is stopped or very slow\n  find it with `lslocks`, and end it"
            )
        time.sleep(_POLL_S * (0.5 + random.random()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _try_claim(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    # The one who held it removes it: a lock on a file that has lost its name holds nobody off.
    if _try_lock(descriptor, fcntl.LOCK_EX) and _has_name(descriptor, path):
        return descriptor
    os.close(descriptor)
    return None


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clean_after_killed(cache_dir: Path) -> None:
    """Remove claims that nobody holds, and what their owners have left half."""
    for claim in cache_dir.glob("*.claim"):
        descriptor = _try_claim(claim)
        if descriptor is not None:
            _drop_half(claim.with_suffix(""))
            claim.unlink()
            os.close(descriptor)


def _drop_half(path: Path) -> None:
    for partial in path.parent.glob(f"{path.name}.*.partial"):
        partial.unlink()


def _claimed_bytes(claim: Path) -> int:
    found = _NAME.match(claim.name)
    assert found, f"{claim} is no claim"
    return int(found[2])


def _list_shards(cache_dir: Path) -> list[tuple[Path, os.stat_result]]:
    with os.scandir(cache_dir) as found:
        return [(Path(entry), entry.stat()) for entry in found if _NAME.fullmatch(entry.name)]


def _mapped_files(cache_dir: Path) -> set[str]:
    """Name the files of a directory that a process of this user has mapped."""
    pattern = re.compile(re.escape(f"{cache_dir}/") + rf"({_NAME.pattern})$", re.MULTILINE)
    names: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it ended meanwhile, or is another user's
            names.update(found[1] for found in pattern.finditer(maps.read_text(errors="replace")))
    return names
