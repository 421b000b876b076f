"""Signatures on disk, and the clusters of documents whose signatures agree.

Documents are numbered through all inputs, in order; a cluster is known by its smallest number. Which documents make a
cluster does not depend on their order: two are joined that share a key and agree, and so is whatever they are joined
with. Pairs that are in one cluster already need not be compared, which keeps the number of comparisons small. Where
many share a key and yet do not agree, each is compared with `_HEADS` of them, chosen by what is in them.

Memory: 8 bytes a document, and 80 for each key that is sorted at once; keys are sorted in as many passes as
`memory_bytes` asks for. A thousand million documents at 4 GiB: 12 GiB, 20 passes for each of 16 bands.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from toolkit import storage
from toolkit.data.quality.words import Hashes
from toolkit.errors import StorageError

KEPT, EXACT, NEAR = 0, 1, 2  # verdicts
EXAMPLES = 5
_KEY_BYTES = 80  # of memory for a key in work: itself, its document, their rank and order, sorted copies
_HEADS = 64  # documents of a group that all others of it are compared with: all pairs of a million take weeks
_PIECE = 1 << 14  # pairs compared (16 MiB of signatures), or documents read, at once
_FILES = ("text", "minhash", "key")
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)

Labels = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Agree = Callable[[Numbers, Numbers], npt.NDArray[np.bool_]]


@dataclass(slots=True)
class SignatureWriter:
    """Appends the signatures of an input's documents."""

    place: Path
    texts: IO[bytes]
    minhashes: IO[bytes]
    keys: IO[bytes]
    bands: int
    count: int = 0

    def add(self, texts: Sequence[tuple[int, int]], minhashes: Hashes) -> None:
        """Append a batch: two halves of each text's hash, and its MinHash signature (none when bands is 0)."""
        with _telling_of_writes(self.place):
            self.texts.write(np.array(texts, np.uint64).tobytes())
            self.minhashes.write(minhashes.astype(np.uint32).tobytes())
            if self.bands:
                self.keys.write(band_keys(minhashes, self.bands).tobytes())
        self.count += len(texts)


@contextmanager
def write_signatures(place: Path, index: int, *, bands: int) -> Iterator[SignatureWriter]:
    """Open the three files of an input (text hashes, signatures, keys); their record is written at the end."""
    with ExitStack() as stack:
        with _telling_of_writes(place):
            place.mkdir(parents=True, exist_ok=True)
            mine = f"{os.getpid()}.partial"  # a process whose parent was killed may still be at the same input
            texts, minhashes, keys = (
                stack.enter_context(open(_file(place, index, f"{kind}.{mine}"), "wb")) for kind in _FILES
            )
        writer = SignatureWriter(place, texts, minhashes, keys, bands)
        yield writer
        with _telling_of_writes(place):
            for file, kind in zip((texts, minhashes, keys), _FILES, strict=True):
                file.close()
                os.replace(_file(place, index, f"{kind}.{mine}"), _file(place, index, kind))
    storage.write_atomic(str(_file(place, index, "json")), json.dumps(writer.count).encode())


@contextmanager
def _telling_of_writes(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{place}: {error.strerror or error}\n  signatures take 656 bytes a document while in work\n"
            "  make room, or name another local directory: --scratch DIR"
        ) from error


def count_signed(place: Path, index: int, *, hashes: int, bands: int) -> int | None:
    """Count the documents of an input whose signatures are whole; None: they are not."""
    record = _file(place, index, "json")
    if not record.is_file():
        return None
    count: int = json.loads(record.read_bytes())
    sizes = {"text": 16, "minhash": 4 * hashes, "key": 8 * bands}
    paths = {kind: _file(place, index, kind) for kind in sizes}
    is_whole = all(path.is_file() and path.stat().st_size == count * sizes[kind] for kind, path in paths.items())
    return count if is_whole else None


def band_keys(minhashes: Hashes, bands: int) -> Hashes:
    """Hash each band of signatures into one key: uint64 [num_documents, bands]."""
    rows = minhashes.shape[1] // bands
    keys = np.zeros((len(minhashes), bands), np.uint64)
    for row in range(rows):
        keys ^= minhashes[:, row : bands * rows : rows]
        keys *= _MIX
        keys ^= keys >> _SHIFT
    return keys


class Signatures:
    """The signatures of all inputs, mapped from disk."""

    def __init__(self, place: Path, counts: Sequence[int], *, hashes: int, bands: int) -> None:
        self.offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        self.texts = [_map(_file(place, i, "text"), np.uint64, (count, 2)) for i, count in enumerate(counts)]
        self.minhashes = [
            _map(_file(place, i, "minhash"), np.uint32, (count, hashes)) for i, count in enumerate(counts)
        ]
        self.keys = [_map(_file(place, i, "key"), np.uint64, (count, bands)) for i, count in enumerate(counts)]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def pieces(self, columns: Sequence[npt.NDArray[Any]], column: int) -> Iterator[tuple[int, Hashes]]:
        """Give a column of all documents in pieces: the number of the first, and the values."""
        for offset, rows in zip(self.offsets, columns, strict=False):
            for start in range(0, len(rows), _PIECE):
                yield int(offset) + start, np.ascontiguousarray(rows[start : start + _PIECE, column])

    def gather(self, columns: Sequence[npt.NDArray[Any]], documents: Numbers) -> npt.NDArray[Any]:
        """Give rows of documents anywhere."""
        found = np.empty((len(documents), columns[0].shape[1]), columns[0].dtype)
        inputs = np.searchsorted(self.offsets, documents, side="right") - 1
        for index in np.unique(inputs):
            here = inputs == index
            found[here] = columns[index][documents[here] - self.offsets[index]]
        return found

    def similarity(self, left: Numbers, right: Numbers) -> npt.NDArray[np.float64]:
        """Estimate the similarity of pairs: the part of equal hashes."""
        pieces = [np.empty(0)]
        for start in range(0, len(left), _PIECE):
            a, b = (self.gather(self.minhashes, side[start : start + _PIECE]) for side in (left, right))
            pieces.append((a == b).mean(axis=1))
        return np.concatenate(pieces)


@dataclass(frozen=True, slots=True)
class Clusters:
    """What was found: a verdict a document, the number of clusters, and pairs as examples."""

    verdicts: npt.NDArray[np.uint8]
    num_clusters: int
    examples: list[tuple[int, int, float]]
    """Document kept, document removed, their similarity."""


def cluster(signatures: Signatures, *, threshold: float | None, memory_bytes: int) -> Clusters:
    """Join equal texts, then those whose signatures agree in at least `threshold`; similarity is handed on.

    Handed on: when A is like B and B like C, all three are one cluster, though A and C may differ more.
    """
    count = len(signatures)
    labels: Labels = np.arange(count, dtype=np.uint32 if count < 2**32 else np.uint64)
    limit = max(_PIECE, memory_bytes // _KEY_BYTES)

    def same_text(left: Numbers, right: Numbers) -> npt.NDArray[np.bool_]:
        halves = (signatures.gather(signatures.texts, side)[:, 1] for side in (left, right))
        return np.asarray(np.equal(*halves))

    _join_column(labels, signatures, signatures.texts, 0, among=np.ones(count, np.bool_), agree=same_text, limit=limit)
    differ = _are_first(labels)
    verdicts = np.full(count, EXACT, np.uint8)
    verdicts[differ] = KEPT
    if threshold is not None:
        least = threshold

        def alike(left: Numbers, right: Numbers) -> npt.NDArray[np.bool_]:
            is_alike: npt.NDArray[np.bool_] = signatures.similarity(left, right) >= least
            return is_alike

        for band in range(signatures.keys[0].shape[1] if signatures.keys else 0):
            _join_column(labels, signatures, signatures.keys, band, among=differ, agree=alike, limit=limit)
        verdicts[~_are_first(labels) & (verdicts == KEPT)] = NEAR
    return Clusters(verdicts, _count_clusters(labels), _find_examples(labels, verdicts, signatures))


def _pieces(count: int) -> Iterator[slice]:
    """Cut documents into pieces: whole arrays of 64-bit numbers would double the memory."""
    return (slice(start, min(start + _PIECE, count)) for start in range(0, count, _PIECE))


def _are_first(labels: Labels) -> npt.NDArray[np.bool_]:
    """Whether each document is the first of its cluster."""
    first = np.empty(len(labels), np.bool_)
    for piece in _pieces(len(labels)):
        first[piece] = labels[piece] == np.arange(piece.start, piece.stop)
    return first


def _count_clusters(labels: Labels) -> int:
    """Count the clusters of more than one document."""
    has_others = np.zeros(len(labels), np.bool_)
    for piece in _pieces(len(labels)):
        part = labels[piece]
        has_others[part[part != np.arange(piece.start, piece.stop)]] = True
    return int(has_others.sum())


def _find_examples(
    labels: Labels, verdicts: npt.NDArray[np.uint8], signatures: Signatures
) -> list[tuple[int, int, float]]:
    near: list[int] = []
    for piece in _pieces(len(labels)):
        near += (np.flatnonzero(verdicts[piece] == NEAR) + piece.start).tolist()
        if len(near) >= EXAMPLES:
            break
    removed = np.array(near[:EXAMPLES], np.int64)
    kept = labels[removed].astype(np.int64)
    return list(zip(kept.tolist(), removed.tolist(), signatures.similarity(kept, removed).tolist(), strict=True))


def _join_column(
    labels: Labels,
    signatures: Signatures,
    columns: Sequence[npt.NDArray[Any]],
    column: int,
    *,
    among: npt.NDArray[np.bool_],
    agree: Agree,
    limit: int,
) -> None:
    """Join the documents of `among` that share a key in one column, in passes of at most about `limit` keys."""
    bits = max(0, (len(labels) - 1) // limit).bit_length()
    for part in range(1 << bits):
        keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for first, values in signatures.pieces(columns, column):
            taken = among[first : first + len(values)]
            if bits:
                taken = taken & (values >> np.uint64(64 - bits) == part)
            keys.append(values[taken])
            documents.append(np.flatnonzero(taken) + first)
        _join_groups(labels, *_sort_groups(signatures, np.concatenate(keys), np.concatenate(documents)), agree)
        flatten(labels)


def _sort_groups(signatures: Signatures, keys: Hashes, documents: Numbers) -> tuple[Hashes, Numbers]:
    """Put documents that share a key side by side, by their content, in another order for each key."""
    order = np.argsort(keys, kind="stable")
    keys, documents = keys[order], documents[order]
    is_shared = np.zeros(len(keys), np.bool_)
    is_shared[1:] = keys[1:] == keys[:-1]
    is_shared[:-1] |= is_shared[1:]
    keys, documents = keys[is_shared], documents[is_shared]
    order = np.lexsort(((signatures.gather(signatures.texts, documents)[:, 0] ^ keys) * _MIX, keys))
    return keys[order], documents[order]


def _join_groups(labels: Labels, keys: Hashes, documents: Numbers, agree: Agree) -> None:
    """Compare each document of a group with its first, then what is left with the next one, and so on."""
    for _ in range(_HEADS):
        if not len(keys):
            return
        is_head = np.ones(len(keys), np.bool_)
        is_head[1:] = keys[1:] != keys[:-1]
        group = np.cumsum(is_head) - 1
        roots = _roots(labels, documents)
        apart = roots != roots[is_head][group]
        left, right = documents[is_head][group[apart]], documents[apart]
        agreed = agree(left, right)
        join(labels, left[agreed], right[agreed])
        is_open = np.logical_or.reduceat(apart, np.flatnonzero(is_head))[group]  # else all are one cluster
        is_left = is_open & ~is_head
        keys, documents = keys[is_left], documents[is_left]


def join(labels: Labels, left: Numbers, right: Numbers) -> None:
    """Make one cluster of each pair's two; afterwards every document leads to the smallest number of its cluster."""
    while True:
        a, b = _roots(labels, left), _roots(labels, right)
        apart = a != b
        if not apart.any():
            return
        np.minimum.at(labels, np.maximum(a, b)[apart], np.minimum(a, b)[apart])


def flatten(labels: Labels) -> None:
    """Let every label be the smallest number of its cluster."""
    for piece in _pieces(len(labels)):
        labels[piece] = _roots(labels, labels[piece])


def _roots(labels: Labels, documents: Numbers | Labels) -> Labels:
    roots = labels[documents]
    while True:
        above = labels[roots]
        if np.array_equal(above, roots):
            return roots
        roots = above


def _file(place: Path, index: int, kind: str) -> Path:
    return place / f"{index:05d}.{kind}"


def _map(path: Path, dtype: Any, shape: tuple[int, int]) -> npt.NDArray[Any]:
    return np.memmap(path, dtype, mode="r", shape=shape) if shape[0] and shape[1] else np.empty(shape, dtype)
