"""Text -> files of tokens, end to end: ours next to what people use, on the same text, one after the other.

The text is the sources and documents of the installed Python packages, each file once. Every contender is a process of
its own (start-up counts), may use all cores, and has its documents compared with ours id by id. Printed are MB of text
per CPU-second of the process and its children. A peer that is not installed is left out; datatrove may live elsewhere:
python benchmarks/tokenize_speed.py --peer-python /path/to/venv/bin/python
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

EOS = "<|endoftext|>"
NUM_FILES = 4
SUFFIXES = {".py", ".pyi", ".h", ".hpp", ".cuh", ".md", ".rst", ".txt", ".js", ".html"}


def main() -> None:
    """Run the contenders and print a table, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=150, help="text to tokenize (default: %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=16_384, help="of the tokenizer (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders to run")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has datatrove")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        CONTENDERS[asked.contender][0](asked.folder / "corpus", asked.folder / "tokenizer.json", asked.folder / "out")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_bytes = make_corpus(folder / "corpus", asked.megabytes * 1_000_000)
        make_tokenizer(folder, asked.vocab_size)
        print(f"{num_bytes / 1e6:.0f} MB of text, vocabulary {asked.vocab_size}, {os.cpu_count()} cores")
        figures: dict[str, dict[str, Any]] = {}
        for contender in asked.only:
            python = asked.peer_python if contender == "datatrove" else sys.executable
            found = measure(contender, folder, python=python, num_bytes=num_bytes)
            print(f"{contender:<24} {found if isinstance(found, str) else describe(found)}", flush=True)
            if not isinstance(found, str):
                figures[contender] = found
        digests = {figure["digest"] for figure in figures.values()}
        print("all ids are equal, document by document" if len(digests) == 1 else "IDS DIFFER")
        ratios = compare(figures)
        for what, ratio in ratios.items():
            print(f"{what}: {ratio:.1f}")
        if asked.json:
            print(json.dumps({"megabytes": num_bytes / 1e6, **figures, **ratios}))


def make_corpus(folder: Path, num_bytes: int) -> int:
    """Write texts of installed packages as JSON lines; give the bytes of text."""
    folder.mkdir()
    files = [(folder / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(NUM_FILES)]
    seen: set[bytes] = set()
    written = 0
    roots = sorted({Path(np.__file__).parents[1], Path(os.__file__).parent})
    for path in (path for root in roots for path in sorted(root.rglob("*"))):
        if written >= num_bytes:
            break
        if path.suffix not in SUFFIXES or not path.is_file() or path.stat().st_size > 1_000_000:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if len(text) < 100 or digest in seen:
            continue
        seen.add(digest)
        record = {"text": text, "path": path.name, "meta": {"size": len(text), "parts": list(path.parts[-3:])}}
        files[len(seen) % NUM_FILES].write(json.dumps(record, ensure_ascii=False) + "\n")
        written += len(text.encode())
    for file in files:
        file.close()
    return written


def make_tokenizer(folder: Path, vocab_size: int) -> None:
    """Train a tokenizer on a part of the corpus."""
    from toolkit.data.prepare.tokenizer import train_tokenizer  # deferred: peers run where it is not  # noqa: PLC0415

    lines = (folder / "corpus" / "0.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "sample.jsonl").write_bytes(b"".join(lines[:: max(1, len(lines) // 500)]))
    train_tokenizer(
        [str(folder / "sample.jsonl")], column="text", vocab_size=vocab_size, path=folder / "tokenizer.json"
    )


def measure(contender: str, folder: Path, *, python: str, num_bytes: int) -> dict[str, Any] | str:
    """Run a contender in a process of its own; a sentence where it is not there."""
    subprocess.run(["rm", "-rf", folder / "out"], check=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [python, __file__, "--contender", contender, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | OFFLINE)
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = (done.stderr.strip() or "no word").splitlines()[-1]
        return f"left out: {last}"
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tokens, documents, digest = digest_documents(CONTENDERS[contender][1](folder / "out"))
    return {
        "mb_per_cpu_s": num_bytes / 1e6 / cpu_s,
        "mb_per_s": num_bytes / 1e6 / wall_s,
        "cpu_s": cpu_s,
        "tokens": tokens,
        "documents": documents,
        "digest": digest,
    }


def digest_documents(documents: Iterable[np.ndarray]) -> tuple[int, int, str]:
    """Count tokens and documents and hash them in a way that does not depend on their order."""
    tokens = count = total = 0
    for ids in documents:
        tokens, count = tokens + len(ids), count + 1
        digest = hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=16).digest()
        total = (total + int.from_bytes(digest, "big")) % 2**128
    return tokens, count, f"{total:032x}"


def describe(found: dict[str, Any]) -> str:
    """Give the line of a contender."""
    return f"{found['mb_per_cpu_s']:7.2f} MB/CPU-s {found['mb_per_s']:7.2f} MB/s   {found['tokens']:,} tokens"


def compare(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Give the ratios that matter."""
    rates = {name: figure["mb_per_cpu_s"] for name, figure in figures.items()}
    popular = [rates[name] for name in ("datasets.map", "datatrove") if name in rates]
    peers = [rates[name] for name in rates if not name.startswith("ours")]
    ratios = {}
    if "ours" in rates and popular:
        ratios["ours over the best of datasets.map and datatrove"] = rates["ours"] / max(popular)
    if "ours, tokenizers" in rates and peers:
        ratios["ours over the best peer, both on tokenizers"] = rates["ours, tokenizers"] / max(peers)
    return ratios


def run_ours(corpus: Path, tokenizer: Path, out: Path, *, engine: str = "gigatoken") -> None:
    """Prepare as data_prep/tokenize_corpus.py does."""
    from toolkit.data.prepare.preparation import Preparation  # deferred: peers run where it is not  # noqa: PLC0415
    from toolkit.data.prepare.tokens import prepare  # noqa: PLC0415

    asked = Preparation(inputs=(str(corpus),), tokenizer=str(tokenizer))
    prepare(asked, out, engine=engine, jobs=os.cpu_count() or 1)


def run_ours_on_tokenizers(corpus: Path, tokenizer: Path, out: Path) -> None:
    """Prepare with the engine of record alone."""
    run_ours(corpus, tokenizer, out, engine="tokenizers")


def read_ours(out: Path) -> Iterator[np.ndarray]:
    """Give the documents of our shards."""
    from toolkit.data.manifest import read_manifest  # deferred: as above  # noqa: PLC0415
    from toolkit.data.shard import Shard  # noqa: PLC0415

    for entries in read_manifest(str(out)).splits.values():
        for entry in entries:
            shard = Shard(out / entry.path)
            yield from np.split(shard.tokens, shard.offsets[1:-1])


def run_datasets(corpus: Path, tokenizer: Path, out: Path) -> None:
    """Map batches over processes and save, as the documentation of `datasets` does."""
    import datasets  # deferred: each contender loads its own  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    encoder = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token=EOS)

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*ids, encoder.eos_token_id] for ids in encoder(batch["text"])["input_ids"]]}

    files = sorted(map(str, corpus.iterdir()))
    rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(out.with_name("cache")))
    mapped = rows.map(encode, batched=True, num_proc=os.cpu_count(), remove_columns=rows.column_names)
    mapped.save_to_disk(str(out))


def read_datasets(out: Path) -> Iterator[np.ndarray]:
    """Give the documents of a saved dataset."""
    import datasets  # deferred: as above  # noqa: PLC0415

    for batch in datasets.load_from_disk(str(out)).with_format("numpy").iter(1000):
        yield from batch["input_ids"]


def run_datatrove(corpus: Path, tokenizer: Path, out: Path) -> None:
    """Read, tokenize and write by tasks, as datatrove's examples do."""
    from datatrove.executor import LocalPipelineExecutor  # deferred: as above  # noqa: PLC0415
    from datatrove.pipeline.readers import JsonlReader  # noqa: PLC0415
    from datatrove.pipeline.tokens import DocumentTokenizer  # noqa: PLC0415

    writer = DocumentTokenizer(str(out), str(tokenizer), eos_token=EOS, shuffle_documents=False)
    LocalPipelineExecutor(
        [JsonlReader(str(corpus)), writer], tasks=NUM_FILES, workers=os.cpu_count() or 1,
        logging_dir=str(out.with_name("logs")), skip_completed=False,
        start_method="fork",  # its default is a fork server, whose CPU time cannot be seen from here
    ).run()  # fmt: skip


def read_datatrove(out: Path) -> Iterator[np.ndarray]:
    """Give the documents of its files."""
    for path in sorted(out.glob("*.ds")):
        ends = np.fromfile(path.with_name(path.name + ".index"), dtype="<u8").astype(np.int64)
        yield from np.split(np.fromfile(path, dtype="<u2"), ends[:-1])


class MegatronEncoder:
    """One line to ids in a pool, as in tools/preprocess_data.py of Megatron-LM."""

    def __init__(self, tokenizer: str) -> None:
        self._path = tokenizer

    def load(self) -> None:
        """Load what a worker needs."""
        import tokenizers  # deferred: as above  # noqa: PLC0415

        type(self).tokenizer = tokenizers.Tokenizer.from_file(self._path)
        type(self).eos_id = type(self).tokenizer.token_to_id(EOS)

    def encode(self, line: str) -> list[int]:
        """Encode a line."""
        ids = type(self).tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
        return [*ids, type(self).eos_id]


def run_megatron(corpus: Path, tokenizer: Path, out: Path) -> None:
    """Write flat tokens and document sizes the way of Megatron's indexed datasets."""
    encoder = MegatronEncoder(str(tokenizer))
    out.mkdir()
    sizes: list[int] = []
    with multiprocessing.Pool(os.cpu_count(), initializer=encoder.load) as pool, (out / "text.bin").open("wb") as file:
        for path in sorted(corpus.iterdir()):
            with path.open(encoding="utf-8") as lines:
                for ids in pool.imap(encoder.encode, lines, 32):
                    file.write(np.array(ids, dtype=np.uint16).tobytes(order="C"))
                    sizes.append(len(ids))
    np.array(sizes, dtype=np.int32).tofile(out / "text.idx")


def read_megatron(out: Path) -> Iterator[np.ndarray]:
    """Give the documents of its file."""
    ends = np.cumsum(np.fromfile(out / "text.idx", dtype=np.int32), dtype=np.int64)
    yield from np.split(np.fromfile(out / "text.bin", dtype=np.uint16), ends[:-1])


OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
CONTENDERS = {
    "ours": (run_ours, read_ours),
    "ours, tokenizers": (run_ours_on_tokenizers, read_ours),
    "datasets.map": (run_datasets, read_datasets),
    "datatrove": (run_datatrove, read_datatrove),
    "Megatron's way": (run_megatron, read_megatron),
}

if __name__ == "__main__":
    main()
