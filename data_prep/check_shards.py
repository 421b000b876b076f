"""Verify token datasets: checksums, counts, and that every id is in the vocabulary."""

import argparse
import json
import sys
from pathlib import Path

from toolkit.cli.script import run
from toolkit.data.manifest import read_manifest
from toolkit.data.shard import verify_shard
from toolkit.errors import ToolkitError


def main() -> int:
    """Check every shard; exit 2 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+", type=Path, help="directories with a manifest.json")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON on the last line")
    asked = parser.parse_args()
    wrong: list[str] = []
    num_shards = 0
    for dataset in asked.datasets:
        try:
            manifest = read_manifest(str(dataset))
            entries = [entry for split in manifest.splits.values() for entry in split]
            vocab_size = manifest.tokenizer.vocab_size
            problems = [line for e in entries for line in verify_shard(dataset / e.path, e, vocab_size=vocab_size)]
        except ToolkitError as error:
            problems, entries = [str(error)], []
        for problem in problems:
            print(problem, file=sys.stderr)
        if not problems:
            tokens = sum(entry.num_tokens for entry in entries)
            print(f"{dataset}: {len(entries)} shards, {tokens:,} tokens, all as the manifest says")
        wrong += problems
        num_shards += len(entries)
    if asked.json:
        print(json.dumps({"datasets": len(asked.datasets), "shards": num_shards, "problems": wrong}))
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(run(main))
