"""Our loader against what people read tokens with: the same rows, by turns, on one core each.

Tokens are drawn at random and written in each reader's own format; a batch is int64 tokens and labels. `memmap` is a
hand-written loop over one flat file; `datasets` a saved dataset of packed rows under torch's DataLoader with 0 and 2
workers; `streaming` is mosaicml-streaming (its own order), left out where it is not installed. Last, a dataset of
many shards is opened.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from toolkit.data.loader import PrefetchingLoader, StepLoader
from toolkit.data.manifest import Manifest, ShardEntry, TokenizerIdentity, check_sizes, read_manifest, write_manifest
from toolkit.data.shard import write_shard
from toolkit.data.stream import MAX_MAPPED, TokenStream, count_samples, locate_in
from toolkit.topology import BatchShape

try:
    import streaming
except ImportError:
    streaming = None

Pair = tuple[torch.Tensor, torch.Tensor]
Reader = Callable[[int], Pair]
"""Gives the batch of a step."""

_SHARDS = 8
_LABEL = "input_ids"


def main() -> None:
    """Time the readers and print a table, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="tokens to read from (default: %(default)s)")
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens a sample (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="samples a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each reader (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="batches a turn (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=10_000, help="shards of the second part (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    with tempfile.TemporaryDirectory() as directory:
        speeds = compare_in(Path(directory), asked)
    for name, found in speeds.items():
        latency = f"p50 {found['p50_us']:6.0f} us  p99 {found['p99_us']:6.0f} us  CPU {found['cpu_us']:6.0f} us"
        ratios = f"ours is {found['wall_ratio']:5.2f} times as fast, {found['cpu_ratio']:5.2f} by CPU"
        print(f"{name:<20} {found['tokens_per_s'] / 1e6:7.1f} M tokens/s  {latency}  {ratios}")
    with tempfile.TemporaryDirectory() as directory:
        opening = open_many(Path(directory), num_shards=asked.shards)
    print(f"{asked.shards} shards: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in opening.items()))
    if asked.json:
        print(json.dumps({"readers": speeds, "opening": opening}))


def compare_in(directory: Path, asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Make the readers and compare them; their threads end with them, before the directory goes."""
    tokens = np.random.default_rng([0, 0, 0]).integers(0, 2**16, size=asked.tokens, dtype=np.uint16)
    num_steps = (asked.rounds + 1) * asked.steps
    readers = make_readers(directory, tokens, asked.seq_len, asked.batch, num_steps=num_steps)
    return compare(readers, rounds=asked.rounds, steps=asked.steps, tokens_per_batch=asked.seq_len * asked.batch)


def make_readers(
    directory: Path, tokens: npt.NDArray[np.uint16], seq_len: int, batch: int, *, num_steps: int
) -> dict[str, Reader]:
    """Write the tokens in each format and open it; the others are told which rows to read, ours works it out."""
    loader = open_ours(directory / "ours", tokens, seq_len=seq_len, batch=batch)
    tokens.tofile(directory / "flat.bin")
    memmap = np.memmap(directory / "flat.bin", dtype=np.uint16, mode="r")
    packed = pack(directory / "packed", tokens, seq_len=seq_len)
    ahead = PrefetchingLoader(loader, replica=0, device=torch.device("cpu"))
    order = [loader.choose(step, replica=0)[1].tolist() for step in range(num_steps)]
    readers: dict[str, Reader] = {
        "ours": lambda step: loader.micro_batches(step, replica=0)[0],
        "ours, read ahead": lambda step: ahead.micro_batches(step)[0],
        "memmap": lambda step: read_memmap(memmap, order[step], seq_len=seq_len),
        "datasets, 0 workers": in_order(packed, order, num_workers=0),
        "datasets, 2 workers": in_order(packed, order, num_workers=2),
    }
    for name, read in readers.items():
        assert all(a.equal(b) for a, b in zip(read(0), readers["ours"](0), strict=True)), f"{name} reads other rows"
    if streaming is None:
        print("streaming: left out, mosaicml-streaming is not installed")
    else:
        readers["streaming"] = open_streaming(directory / "mds", tokens, seq_len=seq_len, batch=batch)
    return readers


def open_ours(directory: Path, tokens: npt.NDArray[np.uint16], *, seq_len: int, batch: int) -> StepLoader:
    """Write token shards and open them."""
    directory.mkdir()
    names = [f"{number}.arrow" for number in range(_SHARDS)]
    pieces = zip(names, np.array_split(tokens, _SHARDS), strict=True)
    shards = [write_shard(directory / name, [piece], dtype="uint16", name=name) for name, piece in pieces]
    stream = TokenStream(shards, locate_in(str(directory)), dtype="uint16", max_mapped=MAX_MAPPED)
    shape = BatchShape(samples_per_step=batch, micro_batch=batch, replicas=1)
    return StepLoader(
        [stream], shares=[1.0], seq_len=seq_len, batch=shape, seed=0, shuffle=True, replica_split="index",
        document_end=None, pin_memory=False,
    )  # fmt: skip


def read_memmap(memmap: npt.NDArray[np.uint16], samples: list[int], *, seq_len: int) -> Pair:
    """Read a batch as a person would by hand."""
    rows = np.stack([memmap[i * seq_len : i * seq_len + seq_len + 1] for i in samples])
    wide = torch.from_numpy(rows.astype(np.int64))
    return wide[:, :-1], wide[:, 1:]


def pack(directory: Path, tokens: npt.NDArray[np.uint16], *, seq_len: int) -> Any:
    """Save rows of seq_len + 1 tokens as a dataset."""
    count = count_samples(len(tokens), seq_len=seq_len)
    rows = np.stack([tokens[i * seq_len : i * seq_len + seq_len + 1] for i in range(count)])
    kind = datasets.Features({_LABEL: datasets.List(datasets.Value("uint16"), length=seq_len + 1)})
    datasets.Dataset.from_dict({_LABEL: rows}, features=kind).save_to_disk(directory)
    return datasets.load_from_disk(directory).with_format("torch")


def in_order(packed: Any, order: list[list[int]], *, num_workers: int) -> Reader:
    """Read a saved dataset through torch's DataLoader, the same rows as ours."""
    steps = [order[0], *order]  # the first is read to compare it
    batches = iter(DataLoader(packed, batch_sampler=steps, num_workers=num_workers))
    return lambda step: split(next(batches)[_LABEL])


def open_streaming(directory: Path, tokens: npt.NDArray[np.uint16], *, seq_len: int, batch: int) -> Reader:
    """Write MDS shards and read them as its manual does."""
    with streaming.MDSWriter(out=str(directory), columns={_LABEL: f"ndarray:uint16:{seq_len + 1}"}) as writer:
        for index in range(count_samples(len(tokens), seq_len=seq_len)):
            writer.write({_LABEL: tokens[index * seq_len : index * seq_len + seq_len + 1]})
    dataset = streaming.StreamingDataset(local=str(directory), shuffle=True, batch_size=batch)

    def forever() -> Iterator[Any]:
        while True:
            yield from DataLoader(dataset, batch_size=batch, drop_last=True)

    batches = forever()
    return lambda step: split(next(batches)[_LABEL])


def split(rows: torch.Tensor) -> Pair:
    """Cut rows into tokens and labels."""
    wide = rows.long()
    return wide[:, :-1], wide[:, 1:]


def compare(
    readers: dict[str, Reader], *, rounds: int, steps: int, tokens_per_batch: int
) -> dict[str, dict[str, float]]:
    """Let the readers take turns; the first turn of each warms up. CPU time is that of the thread that asks."""
    walls: dict[str, list[list[float]]] = {name: [] for name in readers}
    cpus: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds + 1):
        names = list(readers) if turn % 2 else list(readers)[::-1]  # each comes after other neighbours
        for name in names:
            read = readers[name]
            wall, started = [], time.thread_time()
            for step in range(turn * steps, (turn + 1) * steps):
                begun = time.perf_counter()
                read(step)
                wall.append(time.perf_counter() - begun)
            if turn:
                walls[name].append(wall)
                cpus[name].append((time.thread_time() - started) / steps)
    figures = {}
    for name in readers:
        every = np.concatenate(walls[name])
        figures[name] = {
            "tokens_per_s": tokens_per_batch / statistics.median(map(statistics.fmean, walls[name])),
            "p50_us": float(np.percentile(every, 50)) * 1e6,
            "p99_us": float(np.percentile(every, 99)) * 1e6,
            "cpu_us": statistics.median(cpus[name]) * 1e6,
            # Round by round, so that what disturbs a round disturbs both.
            "wall_ratio": statistics.median(
                sum(theirs) / sum(ours) for theirs, ours in zip(walls[name], walls["ours"], strict=True)
            ),
            "cpu_ratio": statistics.median(a / b for a, b in zip(cpus[name], cpus["ours"], strict=True)),
        }
    return figures


def open_many(directory: Path, *, num_shards: int) -> dict[str, float]:
    """Time what a submission and a job do first with a dataset of many shards."""
    first = write_shard(directory / "0.arrow", [np.arange(3000)], dtype="uint16", name="0.arrow")
    data = (directory / "0.arrow").read_bytes()
    entries: list[ShardEntry] = []
    for number in range(num_shards):
        (directory / f"{number}.arrow").write_bytes(data)
        entries.append(dataclasses.replace(first, path=f"{number}.arrow"))
    tokenizer = TokenizerIdentity(name="none", vocab_size=3000, eos_id=0, sha256="")
    manifest = Manifest(
        dtype="uint16", tokenizer=tokenizer, splits={"train": tuple(entries)}, unigram_loss=None, provenance={}
    )
    write_manifest(str(directory), manifest)
    times = {}
    started = time.perf_counter()
    shards = read_manifest(str(directory)).shards("train")
    stream = TokenStream(shards, locate_in(str(directory)), dtype="uint16", max_mapped=MAX_MAPPED)
    stream.read(stream.num_tokens // 2, 100)
    times["open and read a sample"] = time.perf_counter() - started
    started = time.perf_counter()
    assert check_sizes(str(directory), shards) == []
    times["compare sizes"] = time.perf_counter() - started
    started = time.perf_counter()
    for start in range(0, stream.num_tokens, first.num_tokens):
        stream.read(start, 1)
    times["map every shard"] = time.perf_counter() - started
    return times


if __name__ == "__main__":
    main()
