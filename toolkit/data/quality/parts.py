"""Parts of a corpus: records of JSON in packed files, and what became of one input."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import xxhash
import zstandard

from toolkit import storage
from toolkit.errors import DataError

SAMPLES = 5  # samples kept of each rule
_LEVEL = 3  # of zstd: 300 MB/s a core, and text shrinks to a third


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What became of one input: the record beside a part."""

    part: str
    num_bytes: int
    xxh3: str
    documents_read: int
    documents_kept: int
    characters_read: int
    characters_kept: int
    removed: dict[str, int] = field(default_factory=dict)
    """Documents by the rule that removed them."""
    masked: dict[str, int] = field(default_factory=dict)
    """Places in kept documents by what was masked there."""
    samples: dict[str, list[str]] = field(default_factory=dict)
    """First cases of each rule, private values masked."""
    num_skipped: int = 0
    skipped: list[str] = field(default_factory=list)
    """First records that could not be read: file, line and reason."""


@dataclass(slots=True)
class Tally:
    """Counts of an input while it is worked on."""

    documents_read: int = 0
    documents_kept: int = 0
    characters_read: int = 0
    characters_kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)

    def keep(self, before: str, after: str) -> None:
        """Count a document that stays, as it was and as it is."""
        self.documents_read += 1
        self.documents_kept += 1
        self.characters_read += len(before)
        self.characters_kept += len(after)

    def remove(self, text: str, rule: str) -> None:
        """Count a document that goes."""
        self.documents_read += 1
        self.characters_read += len(text)
        self.removed[rule] += 1

    def wants_sample(self, rule: str) -> bool:
        """Whether there is room for another case of a rule."""
        return len(self.samples.get(rule, [])) < SAMPLES

    def add_sample(self, rule: str, sample: str) -> None:
        """Keep a case of a rule; it must not hold a private value."""
        self.samples.setdefault(rule, []).append(sample)

    def close(self, part: str, *, num_bytes: int, xxh3: str, num_skipped: int, skipped: Sequence[str]) -> Part:
        """Give the record of the finished part."""
        counts = asdict(self) | {"removed": dict(self.removed), "masked": dict(self.masked)}
        return Part(
            part=part, num_bytes=num_bytes, xxh3=xxh3, num_skipped=num_skipped, skipped=list(skipped), **counts
        )  # fmt: skip


def sum_parts(parts: Sequence[Part]) -> dict[str, Any]:
    """Add up counts, and take the first samples of each rule."""
    removed: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    samples: dict[str, list[str]] = {}
    for part in parts:
        removed.update(part.removed)
        masked.update(part.masked)
        for rule, found in part.samples.items():
            samples[rule] = [*samples.get(rule, []), *found][:SAMPLES]
    return {
        "documents_read": sum(part.documents_read for part in parts),
        "documents_kept": sum(part.documents_kept for part in parts),
        "characters_read": sum(part.characters_read for part in parts),
        "characters_kept": sum(part.characters_kept for part in parts),
        "num_skipped": sum(part.num_skipped for part in parts),
        "removed": dict(sorted(removed.items())),
        "masked": dict(sorted(masked.items())),
        "samples": dict(sorted(samples.items())),
    }


class PartWriter:
    """Writes the records of a part; what it wrote counts once its record is there."""

    def __init__(self, url: str, raw: IO[bytes]) -> None:
        self._url = url
        self._raw = raw
        self._digest = xxhash.xxh3_128()
        self._packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        self.num_bytes = 0

    def write(self, fields: Mapping[str, Any]) -> None:
        """Append a record."""
        try:
            line = json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a surrogate pair stays what it was: an escape
            line = json.dumps(fields).encode()
        except TypeError as error:
            raise DataError(
                f"{self._url}: a record has a field that JSON cannot hold: {error}\n  leave that field out"
            ) from error
        self._put(self._packer.compress(line + b"\n"))

    def close(self) -> str:
        """End the part, and give its xxh3."""
        self._put(self._packer.flush())
        return self._digest.hexdigest()

    def _put(self, packed: bytes) -> None:
        self._digest.update(packed)
        self.num_bytes += len(packed)
        self._raw.write(packed)


@contextmanager
def open_part(url: str, *, beside: str) -> Iterator[PartWriter]:
    """Open a part for writing; it takes its name at the end.

    Args:
        url: the part.
        beside: what it is called until then. Its own for each writer: a process whose parent was killed may
            still be at the same part.

    Raises:
        StorageError: it cannot be written, as on a full disk.
    """
    raw = storage.open_file(beside, "wb")
    try:
        yield PartWriter(url, raw)
        if storage.is_local(beside):
            raw.flush()
            os.fsync(raw.fileno())
    finally:
        raw.close()
    storage.rename(beside, url)
