"""What a token dataset is: shards with sizes and checksums, the tokenizer, where the text came from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from toolkit import storage
from toolkit.errors import DataError
from toolkit.fields import build

FORMAT_VERSION = 1
NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"

_ITEM_BYTES = {"uint16": 2, "uint32": 4}
_OFFSET_BYTES = 4  # where a document begins
_MOST_OVERHEAD = 1024  # of the Arrow stream: its schema and padding take 384 bytes (pyarrow 26.0, measured)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One file of tokens; `path` is relative to the dataset."""

    path: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    xxh3: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerIdentity:
    """Which tokenizer made the ids; `sha256` is that of its tokenizer.json."""

    name: str
    vocab_size: int
    eos_id: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A complete token dataset; it is the last file that preparation writes."""

    dtype: str
    tokenizer: TokenizerIdentity
    splits: Mapping[str, tuple[ShardEntry, ...]]
    unigram_loss: float | None
    """Nats a token of the validation split when always guessing by the (add-one smoothed) unigram
    frequencies of the train split: what a model must beat."""
    provenance: Mapping[str, Any]
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """Identify the tokens and their order, not the directory."""
        shards = {name: [(s.num_tokens, s.xxh3) for s in split] for name, split in self.splits.items()}
        text = json.dumps([self.dtype, self.tokenizer.sha256, shards], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def shards(self, split: str) -> tuple[ShardEntry, ...]:
        """List the shards of a split."""
        if split not in self.splits:
            raise DataError(f"the dataset has no split {split!r}\n  it has {', '.join(self.splits)}")
        return self.splits[split]

    def num_tokens(self, split: str) -> int:
        """Count the tokens of a split."""
        return sum(shard.num_tokens for shard in self.shards(split))

    def num_documents(self, split: str) -> int:
        """Count the documents of a split."""
        return sum(shard.num_documents for shard in self.shards(split))


def write_manifest(dataset_dir: str, manifest: Manifest) -> None:
    """Write the manifest, atomically."""
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    storage.write_atomic(storage.join(dataset_dir, NAME), text.encode())


def read_manifest(dataset_dir: str) -> Manifest:
    """Read the manifest of a complete dataset.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = storage.join(dataset_dir, NAME)
    try:
        with storage.open_file(path, "rb") as file:
            fields = json.loads(file.read())
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if type(version) is int and version != FORMAT_VERSION:
            raise DataError(f"{path} has format {version}\n  this toolkit reads {FORMAT_VERSION}\n  prepare it again")
        manifest: Manifest = build(Manifest, fields)
        _check(manifest)
        return manifest
    except FileNotFoundError as error:
        state = "is unfinished: it has no" if storage.exists(dataset_dir) else "does not exist, so there is no"
        raise DataError(
            f"token dataset {dataset_dir} {state} {NAME}\n  a complete dataset has one\n"
            f"  make it: python data_prep/tokenize_corpus.py TEXT --tokenizer TOKENIZER --out {dataset_dir}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged: {error}\n  it says what the shards are\n  prepare the dataset again"
        ) from error


def _check(manifest: Manifest) -> None:
    """Compare what a manifest says with itself; ValueError says what cannot be."""
    if manifest.dtype not in _ITEM_BYTES:
        raise ValueError(f"dtype is {manifest.dtype!r}, and must be {' or '.join(_ITEM_BYTES)}")
    tokenizer, num_ids = manifest.tokenizer, 256 ** _ITEM_BYTES[manifest.dtype]
    if not tokenizer.eos_id < tokenizer.vocab_size <= num_ids:
        raise ValueError(
            f"tokenizer.vocab_size={tokenizer.vocab_size}, tokenizer.eos_id={tokenizer.eos_id}, "
            f"but a {manifest.dtype} holds ids below {num_ids}"
        )
    seen: set[str] = set()
    for split, entries in manifest.splits.items():
        for entry in entries:
            if not storage.is_inner(entry.path) or entry.path in seen:
                raise ValueError(
                    f"a shard of {split} is {entry.path!r}, and each must be another file below the dataset"
                )
            seen.add(entry.path)
            content = entry.num_tokens * _ITEM_BYTES[manifest.dtype] + (entry.num_documents + 1) * _OFFSET_BYTES
            if not content <= entry.num_bytes <= content + _MOST_OVERHEAD:
                raise ValueError(
                    f"{entry.path} cannot hold {entry.num_tokens} tokens in {entry.num_documents} documents "
                    f"in {entry.num_bytes} bytes"
                )


def check_sizes(dataset_dir: str, shards: Sequence[ShardEntry]) -> list[str]:
    """Compare each shard's size with the manifest: quick, before every submission."""
    sizes = storage.file_sizes(dataset_dir)  # one listing: a call a shard costs minutes at 10,000 on HDFS
    problems = []
    for shard in shards:
        path = storage.join(dataset_dir, shard.path)
        if shard.path not in sizes:
            problems.append(f"{path} is missing")
        elif sizes[shard.path] != shard.num_bytes:
            problems.append(f"{path} has {sizes[shard.path]} bytes instead of {shard.num_bytes}")
    return problems
