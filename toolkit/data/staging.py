"""Token datasets copied from place to place: every shard compared with the manifest, the manifest last."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass

from toolkit import storage
from toolkit.data import manifest as manifests
from toolkit.data.manifest import ShardEntry
from toolkit.errors import DataError

_FILES_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Staged:
    """What was done."""

    num_files: int
    copied_bytes: int
    kept_bytes: int
    """Of shards that were there already, with the right content."""


def stage(source: str, target: str, *, begin: Callable[[int], None], report: Callable[[int], None]) -> Staged:
    """Copy a dataset; started again after a stop, it verifies and keeps the shards that are there.

    Args:
        source: directory or URL of the dataset.
        target: directory or URL of the copy.
        begin: told how many bytes there are to copy or to verify.
        report: told the bytes of each piece that was copied, and of each shard that was kept.

    Raises:
        DataError: the source is no dataset, or the target holds another one.
        StorageError: a file could not be copied, or is not what the manifest says.
    """
    manifest = manifests.read_manifest(source)
    if storage.exists(storage.join(target, manifests.NAME)):
        there = manifests.read_manifest(target).fingerprint
        if there != manifest.fingerprint:
            raise DataError(
                f"{target} holds another dataset ({there}, not {manifest.fingerprint})\n"
                "  a finished dataset is never changed: runs may read it\n  choose another target, or delete it"
            )
    entries = [entry for split in manifest.splits.values() for entry in split]
    begin(sum(entry.num_bytes for entry in entries))
    kept = _keep(target, entries, report=report)
    missing = {entry.path: entry.xxh3 for entry in entries if entry.path not in kept}
    storage.copy_files(source, target, list(missing), xxh3=missing, report=report)
    shards = {entry.path for entry in entries}
    others = [name for name in storage.file_sizes(source) if name not in shards | {manifests.NAME}]
    storage.copy_files(source, target, others, xxh3={})
    storage.copy_file(storage.join(source, manifests.NAME), storage.join(target, manifests.NAME))
    kept_bytes = sum(entry.num_bytes for entry in entries if entry.path in kept)
    copied_bytes = sum(entry.num_bytes for entry in entries) - kept_bytes
    return Staged(num_files=len(entries) + len(others) + 1, copied_bytes=copied_bytes, kept_bytes=kept_bytes)


def _keep(target: str, entries: list[ShardEntry], *, report: Callable[[int], None]) -> set[str]:
    """Find the shards that are there: by their content, since another dataset may have stood half-way."""
    sizes = storage.file_sizes(target)
    for name in sizes:
        if name.endswith(".partial"):  # of a staging that was killed
            storage.remove_tree(storage.join(target, name))

    def is_there(entry: ShardEntry) -> bool:
        if sizes.get(entry.path) != entry.num_bytes:
            return False
        if storage.checksum(storage.join(target, entry.path)) != entry.xxh3:
            return False
        report(entry.num_bytes)
        return True

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        there = list(pool.map(lambda entry: copy_context().run(is_there, entry), entries))
    return {entry.path for entry, is_kept in zip(entries, there, strict=True) if is_kept}
