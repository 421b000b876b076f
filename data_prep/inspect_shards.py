"""Show what is in a token dataset: documents, their lengths, duplicates, and how some of them begin."""

import argparse
import json
import sys
from dataclasses import asdict

import numpy as np
from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toolkit.cli.script import run
from toolkit.data.manifest import read_manifest
from toolkit.data.prepare.survey import Survey, survey_shards


def main() -> int:
    """Read the shards, and show what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("dataset", help="directory with a manifest.json")
    add("--split", default="train", help="which split (default: %(default)s)")
    add("--shards", type=int, help="read only so many, evenly spread (default: all)")
    add("--samples", type=int, default=5, help="documents to show (default: %(default)s)")
    add("--sample-tokens", type=int, default=60, help="tokens to show of each (default: %(default)s)")
    add("--seed", type=int, default=0, help="chooses the documents (default: %(default)s)")
    add("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    manifest = read_manifest(asked.dataset)
    entries = manifest.shards(asked.split)
    wanted = min(asked.shards or len(entries), len(entries))
    found = survey_shards(
        asked.dataset,
        [entries[number * len(entries) // wanted] for number in range(wanted)],
        num_samples=asked.samples,
        sample_tokens=asked.sample_tokens,
        rng=np.random.default_rng([asked.seed, 0, 0]),
    )
    print(f"{asked.dataset}: {asked.split}, {wanted} of {len(entries)} shards read")
    show(found)
    if asked.json:
        print(json.dumps(asdict(found)))
    return 0


def show(found: Survey) -> None:
    """Print a survey."""
    console = Console(soft_wrap=True, highlight=False)
    mean, rate = found.num_tokens / max(1, found.num_documents), found.num_duplicates / max(1, found.num_documents)
    console.print(f"{found.num_documents:,} documents, {found.num_tokens:,} tokens, {mean:,.0f} a document")
    console.print(f"{found.num_duplicates:,} documents ({rate:.2%}) are equal to another one")
    table = Table("tokens", "documents", "", "of all tokens", box=None)
    most = max(row.num_documents for row in found.lengths)
    for row in found.lengths:
        share = f"{row.num_tokens / found.num_tokens:.1%}"
        bar = Bar(most, 0, row.num_documents, width=40)
        table.add_row(f"{row.low:,} - {row.high - 1:,}", f"{row.num_documents:,}", bar, share)
    console.print(table)
    for sample in found.samples:
        console.print(f"[bold]{sample.shard} document {sample.document}, {sample.num_tokens:,} tokens[/bold]")
        console.print(f"  {escape(' '.join(sample.text.split()))}")


if __name__ == "__main__":
    sys.exit(run(main))
