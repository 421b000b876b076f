"""Documents -> token shards + manifest, with Hugging Face's `tokenizers` as the engine."""

import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit import storage
from toolkit.data import manifest as manifests
from toolkit.data.manifest import Manifest, ShardEntry, TokenizerIdentity
from toolkit.data.shard import write_shard
from toolkit.data.sources import Document, find_inputs, read_documents
from toolkit.errors import DataError

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
_BATCH = 1024  # documents an encoding call: enough for all cores, bounded memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """What is asked for; two equal ones give byte-identical datasets."""

    inputs: tuple[str, ...]
    tokenizer: str
    column: str = "text"
    validation: float = 0.01
    """Part of the documents that goes to the validation split."""
    split_by: str = "hash"
    """`hash`: a document's text decides, so it stays where it is when the corpus grows; `index`: every n-th."""
    tokens_per_shard: int = 100_000_000
    licence: str = ""


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer: a tokenizer.json, a directory with one (also a URL), or a name on the Hub.

    Raises:
        DataError: it cannot be had.
    """
    import tokenizers  # deferred: only preparation and sampling need it  # noqa: PLC0415

    path = Path(name) / manifests.TOKENIZER_NAME if Path(name).is_dir() else Path(name)
    try:
        if not storage.is_local(name):
            url = name if name.endswith(".json") else storage.join(name, manifests.TOKENIZER_NAME)
            return tokenizers.Tokenizer.from_str(storage.read_file(url).decode())
        if path.is_file():
            return tokenizers.Tokenizer.from_file(str(path))
        return tokenizers.Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises plain Exception
        raise DataError(
            f"tokenizer {name} cannot be loaded: {str(error).splitlines()[0]}\n"
            "  it must be a tokenizer.json, a directory with one, or a name on the Hub\n"
            "  make one: python data_prep/train_tokenizer.py TEXT --vocab-size 4096 --out tokenizer.json"
        ) from error


def train_tokenizer(inputs: Sequence[str], *, column: str, vocab_size: int, path: Path) -> int:
    """Train a byte-level BPE on texts, write it, and give its real vocabulary size.

    Source: Radford et al. 2019 (GPT-2), byte-level BPE.
    """
    import tokenizers  # deferred: see load_tokenizer  # noqa: PLC0415
    from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = _read_all(find_inputs(list(inputs)), column=column)
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    storage.write_atomic(str(path), tokenizer.to_str(pretty=False).encode())
    return int(tokenizer.get_vocab_size())


def prepare(asked: Preparation, out_dir: Path) -> tuple[Manifest, bool]:
    """Make a token dataset, or find that it is there already.

    Everything is written beside and renamed at the end, so a killed preparation leaves nothing that
    looks whole.

    Returns:
        The manifest, and whether it was made now.

    Raises:
        DataError: bad input; or another dataset stands there already (the text says what differs).
    """
    inputs = find_inputs(list(asked.inputs))
    tokenizer = load_tokenizer(asked.tokenizer)
    provenance = _provenance(asked, inputs, tokenizer)
    if (out_dir / manifests.NAME).is_file():
        found = manifests.read_manifest(str(out_dir))
        _raise_different(out_dir, found.provenance, provenance)
        return found, False
    partial = out_dir.with_name(out_dir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    made = _write_dataset(asked, inputs, tokenizer, partial, provenance)
    if out_dir.exists():
        shutil.rmtree(out_dir)  # unfinished: it has no manifest
    partial.rename(out_dir)
    return made, True


def _write_dataset(
    asked: Preparation, inputs: list[str], tokenizer: Any, target: Path, provenance: dict[str, Any]
) -> Manifest:
    identity = _identify(asked.tokenizer, tokenizer)
    dtype = "uint16" if identity.vocab_size <= 2**16 else "uint32"
    writers = {
        name: _SplitWriter(target, name, dtype=dtype, vocab_size=identity.vocab_size, limit=asked.tokens_per_shard)
        for name in ("train", "validation")
    }
    for name, ids in _encode(asked, inputs, tokenizer, identity.eos_id):
        writers[name].add(ids)
    for writer in writers.values():
        writer.flush()
        if not writer.entries:
            raise DataError(
                f"the {writer.name} split is empty\n  it needs documents\n  give more text, or another --validation"
            )
    (target / manifests.TOKENIZER_NAME).write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    _describe_for_datasets(target, writers.values(), dtype)
    made = Manifest(
        dtype=dtype,
        tokenizer=identity,
        splits={name: tuple(writer.entries) for name, writer in writers.items()},
        unigram_loss=unigram_loss(writers["train"].counts, writers["validation"].counts),
        provenance=provenance,
    )
    manifests.write_manifest(str(target), made)
    return made


def unigram_loss(train_counts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> float:
    """Average over `counts` the nats of guessing by the add-one smoothed frequencies of `train_counts`."""
    smoothed = train_counts + 1.0
    return float(-(counts * np.log(smoothed / smoothed.sum())).sum() / counts.sum())


@dataclass(slots=True)
class _SplitWriter:
    target: Path
    name: str
    dtype: str
    vocab_size: int
    limit: int
    entries: list[ShardEntry] = field(default_factory=list)
    counts: npt.NDArray[np.int64] = field(init=False)
    _pending: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    _pending_tokens: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.vocab_size, dtype=np.int64)

    def add(self, ids: npt.NDArray[np.uint32]) -> None:
        if self._pending and self._pending_tokens + len(ids) > self.limit:
            self.flush()
        self._pending.append(ids)
        self._pending_tokens += len(ids)
        self.counts += np.bincount(ids, minlength=self.vocab_size)

    def flush(self) -> None:
        if not self._pending:
            return
        name = f"{self.name}/{len(self.entries):05d}.arrow"
        self.entries.append(write_shard(self.target / name, self._pending, dtype=self.dtype, name=name))
        self._pending, self._pending_tokens = [], 0


def _encode(
    asked: Preparation, inputs: list[str], tokenizer: Any, eos_id: int
) -> Iterator[tuple[str, npt.NDArray[np.uint32]]]:
    numbered = enumerate(_read_all(inputs, column=asked.column))
    while batch := list(itertools.islice(numbered, _BATCH)):
        encodings = tokenizer.encode_batch_fast([document.text for _, document in batch], add_special_tokens=False)
        for (number, document), encoding in zip(batch, encodings, strict=True):
            yield _side(asked, document, number), np.array([*encoding.ids, eos_id], dtype=np.uint32)


def _side(asked: Preparation, document: Document, number: int) -> str:
    """Choose the split of a document: 64 bits of its text's hash, or its place in the corpus."""
    if asked.split_by == "hash":
        digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()
        return "validation" if int.from_bytes(digest[:8], "big") < asked.validation * 2**64 else "train"
    return "validation" if number % max(1, round(1 / asked.validation)) == 0 else "train"


def _read_all(inputs: list[str], *, column: str) -> Iterator[Document]:
    return itertools.chain.from_iterable(read_documents(name, column=column) for name in inputs)


def _identify(name: str, tokenizer: Any) -> TokenizerIdentity:
    eos_ids = [tokenizer.token_to_id(token) for token in (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")]
    eos_id = next((token_id for token_id in eos_ids if token_id is not None), None)
    if eos_id is None:
        raise DataError(f"tokenizer {name} has no end-of-text token\n  one of {END_OF_TEXT}, </s> must be in it")
    return TokenizerIdentity(
        name=Path(name).name,
        vocab_size=tokenizer.get_vocab_size(),
        eos_id=eos_id,
        sha256=hashlib.sha256(tokenizer.to_str(pretty=False).encode()).hexdigest(),
    )


def _provenance(asked: Preparation, inputs: list[str], tokenizer: Any) -> dict[str, Any]:
    options = {key: value for key, value in asdict(asked).items() if key not in {"inputs", "tokenizer"}}
    files = [{"path": name, **_stamp(name)} for name in inputs]
    return {
        "inputs": files,
        "options": options,
        "tokenizer": _identify(asked.tokenizer, tokenizer).sha256,
        "tokenizers": version("tokenizers"),
    }


def _stamp(name: str) -> dict[str, Any]:
    return {} if name.startswith("datasets:") else {"bytes": storage.size(name), "xxh3": storage.checksum(name)}


def _raise_different(out_dir: Path, then: Any, now: dict[str, Any]) -> None:
    differing = [key for key in ("inputs", "options", "tokenizer") if then.get(key) != now[key]]
    if differing:
        raise DataError(
            f"{out_dir} was made from other {', '.join(differing)}\n"
            "  a finished dataset is never changed: runs may read it\n"
            f"  choose another --out, or delete {out_dir}"
        )


def _describe_for_datasets(target: Path, writers: Iterable[_SplitWriter], dtype: str) -> None:
    """Write the small files by which `datasets.load_from_disk` opens the directory."""
    features = {"input_ids": {"feature": {"dtype": dtype, "_type": "Value"}, "_type": "List"}}
    for writer in writers:
        folder = target / writer.name
        state: dict[str, Any] = {
            "_data_files": [{"filename": Path(entry.path).name} for entry in writer.entries],
            "_fingerprint": writer.entries[0].xxh3[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": writer.name,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}, indent=1), encoding="utf-8")
    names = json.dumps({"splits": [writer.name for writer in writers]})
    (target / "dataset_dict.json").write_text(names, encoding="utf-8")
