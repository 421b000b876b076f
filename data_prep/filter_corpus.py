"""Filter documents by rules and mask private values in them: a corpus in, a smaller corpus with its report out.

python data_prep/filter_corpus.py corpus.jsonl --out data/corpus-filtered
python data_prep/filter_corpus.py data/raw --rules configs/filters/english-web.yaml --out hdfs://site/clean

OUT gets part-00000.jsonl.zst ... (one an input, all fields kept) and corpus.json: what was removed and masked, rule by
rule, with redacted samples. Started again after a kill, it goes on with the inputs that are left.
"""

import argparse
import json
import sys
from pathlib import Path

from toolkit.cli.script import run
from toolkit.data.prepare.bar import show_progress
from toolkit.data.quality.filters import Filtering, filter_corpus
from toolkit.data.quality.language import list_languages
from toolkit.data.quality.privacy import list_regions
from toolkit.data.quality.rules import load_rules

RULES = Path(__file__).parents[1] / "configs" / "filters" / "default.yaml"


def main() -> int:
    """Filter, and say what went and why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs", nargs="+", help="files or directories (.jsonl[.gz|.zst], .parquet, .txt), datasets:NAME"
    )
    parser.add_argument("--out", required=True, help="directory or URL of the corpus to make")
    parser.add_argument("--rules", type=Path, default=RULES, help="filter file (default: configs/filters/default.yaml)")
    parser.add_argument("--column", default="text", help="field that holds the text (default: %(default)s)")
    parser.add_argument(
        "--on-error", choices=["stop", "skip"], default="stop", help="at a broken record (default: stop)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, each at one input (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the totals as JSON on the last line")
    asked = parser.parse_args()
    if asked.jobs < 1:
        parser.error("--jobs must be at least 1")
    rules = load_rules(asked.rules, languages=list_languages(), regions=list_regions())
    filtering = Filtering(inputs=tuple(asked.inputs), rules=rules, column=asked.column, on_error=asked.on_error)
    made = filter_corpus(filtering, asked.out, jobs=asked.jobs, show=show_progress)
    totals = made["totals"]
    read, kept = totals["documents_read"], totals["documents_kept"]
    print(f"{asked.out}: {kept:,} of {read:,} documents kept, {totals['num_skipped']:,} unreadable records left out")
    for act in ("removed", "masked"):
        for rule, count in sorted(totals[act].items(), key=lambda item: -item[1]):
            sample = totals["samples"].get(rule, [""])[0]
            print(f"  {act} {count:>9,}  {rule:<40} {sample[:100]}")
    if asked.json:
        print(json.dumps(totals))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
