"""Take exact and near duplicates out of corpora, across all inputs: the first document of each cluster stays.

python data_prep/dedup_corpus.py data/corpus-filtered --out data/corpus-unique
python data_prep/dedup_corpus.py a.jsonl b.parquet --exact-only --out data/corpus-unique

OUT gets part-00000.jsonl.zst ... (one an input, all fields kept) and corpus.json with counts and examples. The result
does not depend on jobs or memory. Started again after a kill, it goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path

from toolkit.cli.script import run
from toolkit.data.prepare.bar import show_progress
from toolkit.data.quality.dedup import Deduplication, deduplicate


def main() -> int:
    """Deduplicate, and say how much went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs", nargs="+", help="files or directories (.jsonl[.gz|.zst], .parquet, .txt), datasets:NAME"
    )
    parser.add_argument("--out", required=True, help="directory or URL of the corpus to make")
    parser.add_argument("--column", default="text", help="field that holds the text (default: %(default)s)")
    parser.add_argument(
        "--threshold", type=float, default=0.8, help="least similarity of near duplicates (default: %(default)s)"
    )
    parser.add_argument("--exact-only", action="store_true", help="equal texts only")
    parser.add_argument(
        "--on-error", choices=["stop", "skip"], default="stop", help="at a broken record (default: stop)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, each at one input (default: %(default)s)")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="for sorting keys (default: %(default)s)")
    parser.add_argument(
        "--scratch", type=Path, help="local directory for 656 bytes a document while in work (default: beside OUT)"
    )
    parser.add_argument("--json", action="store_true", help="print the totals as JSON on the last line")
    asked = parser.parse_args()
    if asked.jobs < 1:
        parser.error("--jobs must be at least 1")
    if not 0.5 <= asked.threshold <= 1.0:
        parser.error("--threshold must lie between 0.5 and 1: below it most pairs are candidates")
    wanted = Deduplication(
        inputs=tuple(asked.inputs), threshold=None if asked.exact_only else asked.threshold,
        column=asked.column, on_error=asked.on_error,
    )  # fmt: skip
    made = deduplicate(
        wanted, asked.out, jobs=asked.jobs, memory_bytes=int(asked.memory_gib * 2**30), scratch=asked.scratch,
        show=show_progress,
    )  # fmt: skip
    totals = {**made["totals"], "clusters": made["clusters"]}
    exact, near = (totals["removed"].get(kind, 0) for kind in ("exact", "near"))
    print(f"{asked.out}: {totals['documents_kept']:,} of {totals['documents_read']:,} documents kept")
    print(f"  removed {exact:,} exact and {near:,} near duplicates of {made['clusters']:,} documents")
    for part, item in list(zip(made["parts"], made["inputs"], strict=True))[:20]:  # corpus.json has all
        print(f"  {item['name']}: {sum(part['removed'].values()):,} of {part['documents_read']:,}")
    for pair in made["examples"]:
        print(f"  {pair['similarity']:.3f}: {pair['removed']} is like {pair['kept']}")
    if asked.json:
        print(json.dumps(totals))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
