"""Say how many tokens, shards, bytes and CPU-hours a corpus will come to, from a small sample of its text.

python data_prep/estimate_tokens.py corpus/ --tokenizer tokenizer.json

It reads a little at many places: of JSONL and Parquet anywhere, of packed files only at their beginnings.
"""

import argparse
import json
import sys
from dataclasses import asdict

import numpy as np

from toolkit.cli.script import run
from toolkit.data.prepare.estimate import estimate_dataset
from toolkit.data.prepare.preparation import Preparation


def main() -> int:
    """Estimate, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("inputs", nargs="+", help="files or directories (.jsonl[.gz|.zst], .parquet, .txt), datasets:NAME")
    add("--tokenizer", required=True, help="tokenizer.json, a directory with one, or a name on the Hub")
    add("--column", default="text", help="field that holds the text (default: %(default)s)")
    add("--validation", type=float, default=0.01, help="part of the documents for validation (default: %(default)s)")
    add("--tokens-per-shard", type=int, default=100_000_000, help="largest shard (default: %(default)s)")
    add("--on-error", choices=["stop", "skip"], default="skip", help="about broken records (default: %(default)s)")
    add("--max-record-bytes", type=int, default=8 << 20, help="longer records count as broken (default: %(default)s)")
    add("--engine", choices=["auto", "tokenizers", "gigatoken"], default="auto", help="default: %(default)s")
    add("--places", type=int, default=64, help="where to look (default: %(default)s)")
    add("--place-bytes", type=int, default=256 << 10, help="how much to read at each (default: %(default)s)")
    add("--seed", type=int, default=0, help="chooses the places (default: %(default)s)")
    add("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    options = {name: getattr(asked, name) for name in ("tokenizer", "column", "validation", "tokens_per_shard")}
    found = estimate_dataset(
        Preparation(
            inputs=tuple(asked.inputs), on_error=asked.on_error, max_record_bytes=asked.max_record_bytes, **options
        ),
        engine=asked.engine,
        num_places=asked.places,
        place_bytes=asked.place_bytes,
        rng=np.random.default_rng([asked.seed, 0, 0]),
    )
    low, high = found.low_tokens / 1e6, found.high_tokens / 1e6
    print(f"tokens     {found.num_tokens / 1e6:,.1f} million, in 95 of 100 cases {low:,.1f} to {high:,.1f}")
    print(f"documents  {found.num_documents:,}")
    print(f"shards     about {found.num_shards:,}, {found.num_bytes / 1e9:,.2f} GB")
    print(f"CPU-hours  {found.cpu_hours:.3g} with the engine {asked.engine}")
    print(f"seen       {found.sampled_bytes / 1e6:,.1f} MB at {found.num_places} places")
    if asked.json:
        print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
