"""Where this node finds the shards of a run: in place, or in its cache where the dataset is remote."""

import itertools
from collections.abc import Mapping, Sequence

from toolkit import storage
from toolkit.config.schema import DataSection
from toolkit.data.cache import ShardCache, open_cache
from toolkit.data.manifest import ShardEntry
from toolkit.data.mixture import Member
from toolkit.data.stream import MAX_MAPPED, Locate, locate_in


class ShardPlaces:
    """Finds the shards of a run's datasets on this node; close it."""

    def __init__(self, members: Sequence[Member], data: DataSection, environ: Mapping[str, str]) -> None:
        """Open; a cache is opened only where a dataset is remote.

        Raises:
            DataError: there is no place for a cache, or it is too small.
        """
        self._members = tuple(members)
        remote = [member for member in members if not storage.is_local(member.dataset_dir)]
        entries = [entry for member in remote for split in member.manifest.splits.values() for entry in split]
        self._cache: ShardCache | None = open_cache(data, environ, entries) if entries else None
        self.max_mapped = min(MAX_MAPPED, self._cache.mappable(entries)) if self._cache else MAX_MAPPED

    def locate_in(self, dataset_dir: str) -> Locate:
        """Give the function that finds the shards of a dataset."""
        if storage.is_local(dataset_dir):
            return locate_in(dataset_dir)
        assert self._cache is not None, f"{dataset_dir} is none of the run's datasets"
        return self._cache.locate_in(dataset_dir)

    def prefetch(self, ahead: Sequence[Sequence[ShardEntry]]) -> None:
        """Fetch remote shards before they are read; one rank a node asks for it.

        Args:
            ahead: the shards of each dataset in the order of their first use, see `StepLoader.shards_ahead`.
        """
        if self._cache is None:
            return
        wanted = [
            [(storage.join(member.dataset_dir, entry.path), entry) for entry in shards]
            for member, shards in zip(self._members, ahead, strict=True)
            if not storage.is_local(member.dataset_dir)
        ]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*wanted))
        self._cache.prefetch([shard for shard in turns if shard is not None])

    def close(self) -> None:
        """End what is on its way."""
        if self._cache is not None:
            self._cache.close()
