"""Duplicates out of a corpus, exact and near, across all inputs: of each cluster the first document stays.

1. Signatures: one pass over each input writes, per document, xxh3-128 of its text, a MinHash signature of its runs
   of words, and a key for each band of it (locality-sensitive hashing). They lie on disk, so a killed run goes on.
2. Clusters: documents that share a key and whose signatures agree are joined (`clusters.py`).
3. Parts: each input is read again, and the documents that stay are written.

Disk, while in work: 656 bytes a document. Memory: see `clusters.py`; a process of 1 and 3 holds one batch of documents.

Source: Broder 1997 (MinHash); Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4 (bands).
"""

import functools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rensa
import xxhash

from toolkit import storage
from toolkit.data.prepare.alone import hold_out
from toolkit.data.prepare.workers import Report, run_tasks
from toolkit.data.quality.clusters import EXACT, KEPT, NEAR, Signatures, cluster, count_signed, write_signatures
from toolkit.data.quality.corpus import Show, Work, finish, missing_parts, open_work, read_input, run_parts
from toolkit.data.quality.parts import Part, Tally, open_part
from toolkit.data.quality.words import Hashes, find_words, hash_runs
from toolkit.data.text.records import Record, Skipped
from toolkit.data.text.sources import find_inputs
from toolkit.errors import DataError

NUM_HASHES = 128
_SEED = 1
_RUN = 5  # words; Source: Brown et al. 2020 (GPT-3) and datatrove use runs of about that length
_BATCH = 64  # documents a call: rensa starts threads for larger ones
_RECALL = 0.9
_RULES = {EXACT: "exact", NEAR: "near"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Deduplication:
    """What is asked for; two equal ones give byte-identical corpora."""

    inputs: tuple[str, ...]
    threshold: float | None = 0.8
    """Least similarity (Jaccard, of runs of five words) of near duplicates. None: exact ones only."""
    column: str = "text"
    on_error: str = "stop"
    """`stop` at a record that cannot be read, or `skip` it: counted and listed."""


def deduplicate(
    asked: Deduplication,
    out: str,
    *,
    jobs: int,
    memory_bytes: int,
    scratch: Path | None,
    show: Show,
) -> dict[str, Any]:
    """Take duplicates out of a corpus, or go on where a killed run stopped, or find that it is done.

    Args:
        asked: inputs and threshold.
        out: directory or URL of the corpus to make.
        jobs: processes, each at one input.
        memory_bytes: for the keys that are sorted at once.
        scratch: local directory for signatures; None: beside the corpus, which must then be local.
        show: shows progress, of two passes over the inputs.

    Returns:
        The content of corpus.json.

    Raises:
        DataError: bad input, or another corpus stands there.
        HeldError: somebody else is making it.
        StorageError: it cannot be written.
    """
    settings = {
        "threshold": asked.threshold, "column": asked.column, "on_error": asked.on_error,
        "minhash": {"words": _RUN, "hashes": NUM_HASHES, "seed": _SEED, "algorithm": rensa.RMinHash.ALGORITHM_VERSION},
        "engines": {name: version(name) for name in ("rensa", "zstandard")},
    }  # fmt: skip
    with hold_out(out, what=f"{out} is being made"):
        work, finished = open_work(out, act="dedup", asked=settings, inputs=find_inputs(list(asked.inputs)))
        if finished is not None:
            return finished
        place = _signature_dir(work, scratch)
        unsigned = [index for index in range(len(work.inputs)) if count_signed(place, index, **_widths(work)) is None]
        total = 2 * work.num_bytes()
        done = total - work.num_bytes(unsigned) - work.num_bytes(missing_parts(work))
        with show("deduplicating", total_bytes=total, done_bytes=done) as report:
            run_tasks(unsigned, functools.partial(_sign_input, place, work), num_workers=jobs, report=report)
            found = _find_clusters(work, place, memory_bytes)
            parts = run_parts(work, functools.partial(_write_part, place), jobs=jobs, report=report)
        made = finish(work, parts, extra=found)
        shutil.rmtree(place, ignore_errors=True)
        return made


def bands_for(threshold: float) -> tuple[int, int]:
    """Give bands and rows: as many rows as leave a pair at the threshold at least a 90 % chance to share a band.

    Wrong candidates do not matter, since signatures are compared; missed pairs do.
    """
    fits = [rows for rows in range(1, NUM_HASHES + 1) if chance(threshold, NUM_HASHES // rows, rows) >= _RECALL]
    return NUM_HASHES // max(fits), max(fits)


def chance(similarity: float, bands: int, rows: int) -> float:
    """Give the probability that two documents share a band."""
    return 1 - (1 - similarity**rows) ** bands


def sign(texts: list[str]) -> Hashes:
    """Give the MinHash signatures of texts: uint64 [num_texts, NUM_HASHES], each of 32 bits."""
    runs = []
    for text in texts:
        words = find_words(text)
        # A text without words is like another only when it is the same.
        runs.append(hash_runs(words.hashes, _RUN) if len(words.hashes) else np.array(_hash_text(text)[:1], np.uint64))
    offsets = [0, *np.cumsum([len(one) for one in runs]).tolist()]
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(runs), offsets, NUM_HASHES, _SEED)
    return np.array(matrix.to_rows(), np.uint64)


def _hash_text(text: str) -> tuple[int, int]:
    return divmod(xxhash.xxh3_128_intdigest(text.encode("utf-8", "surrogatepass")), 1 << 64)


def _sign_input(place: Path, work: Work, index: int, report: Report) -> None:
    """Write the signatures of an input."""
    is_near = work.asked["threshold"] is not None
    records = read_input(work, index, skipped=Skipped(), report=report)
    with write_signatures(place, index, bands=_widths(work)["bands"]) as writer:
        for batch in _batches(records, work.asked["column"]):
            nothing = np.empty((len(batch), 0), np.uint64)
            writer.add([_hash_text(text) for text in batch], sign(batch) if is_near else nothing)


def _write_part(place: Path, work: Work, index: int, report: Report) -> Part:
    """Write the documents of an input that stay."""
    verdicts = np.fromfile(_verdicts(place, index), np.uint8).tolist()
    column, name = work.asked["column"], work.inputs[index].name
    skipped, tally = Skipped(), Tally()
    with open_part(work.part_url(index), beside=work.beside_url(index)) as writer:
        for record in read_input(work, index, skipped=skipped, report=report):
            if tally.documents_read == len(verdicts):
                raise DataError(f"{name} has grown while it was read\n  start again when nothing writes to it")
            verdict = verdicts[tally.documents_read]
            text = record.fields[column]
            if verdict == KEPT:
                writer.write(record.fields)
                tally.keep(text, text)
            else:
                tally.remove(text, _RULES[verdict])
                if tally.wants_sample(_RULES[verdict]):
                    tally.add_sample(_RULES[verdict], record.origin)
        checksum = writer.close()
    if tally.documents_read < len(verdicts):
        raise DataError(f"{name} has shrunk while it was read\n  start again when nothing writes to it")
    return tally.close(
        work.part_name(index), num_bytes=writer.num_bytes, xxh3=checksum,
        num_skipped=skipped.count, skipped=skipped.reasons,
    )  # fmt: skip


def _find_clusters(work: Work, place: Path, memory_bytes: int) -> dict[str, Any]:
    """Write the verdicts of every input, and give what the report says of clusters."""
    record = place / "clusters.json"
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_bytes())
        return found
    found_counts = [count_signed(place, index, **_widths(work)) for index in range(len(work.inputs))]
    counts = [count for count in found_counts if count is not None]
    assert len(counts) == len(work.inputs), "all inputs were signed before"
    signatures = Signatures(place, counts, **_widths(work))
    clusters = cluster(signatures, threshold=work.asked["threshold"], memory_bytes=memory_bytes)
    for index, (start, end) in enumerate(zip(signatures.offsets[:-1], signatures.offsets[1:], strict=True)):
        storage.write_atomic(str(_verdicts(place, index)), clusters.verdicts[start:end].tobytes())

    def tell(document: int) -> str:
        index = int(np.searchsorted(signatures.offsets, document, side="right")) - 1
        return f"{work.inputs[index].name}: document {document - signatures.offsets[index] + 1}"

    examples = [
        {"kept": tell(kept), "removed": tell(removed), "similarity": round(similarity, 3)}
        for kept, removed, similarity in clusters.examples
    ]
    found = {"clusters": clusters.num_clusters, "examples": examples}
    storage.write_atomic(str(record), json.dumps(found).encode())
    return found


def _batches(records: Iterable[Record], column: str) -> Iterator[list[str]]:
    batch: list[str] = []
    for record in records:
        batch.append(record.fields[column])
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _widths(work: Work) -> dict[str, int]:
    threshold = work.asked["threshold"]
    return {"hashes": 0, "bands": 0} if threshold is None else {"hashes": NUM_HASHES, "bands": bands_for(threshold)[0]}


def _signature_dir(work: Work, scratch: Path | None) -> Path:
    """Place signatures: under the name of what was asked, so that those of another run are never taken."""
    if scratch is None and not storage.is_local(work.out):
        raise DataError(
            f"{work.out} is not on this machine\n  signatures are mapped from a local directory, 656 bytes a document\n"
            "  name one: --scratch DIR"
        )
    asked = json.dumps([work.asked, [asdict(item) for item in work.inputs]], sort_keys=True)
    place = scratch or storage.local_path(work.work_url(""))
    return place / f"signatures-{xxhash.xxh3_64_hexdigest(asked.encode())}"


def _verdicts(place: Path, index: int) -> Path:
    return place / f"{index:05d}.verdict"
