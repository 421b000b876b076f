"""Turn text into a token dataset: Arrow shards that `datasets` opens, and a manifest.json.

python data_prep/tokenize_corpus.py corpus.jsonl --tokenizer tokenizer.json --out data/corpus

Started again after whatever ended it, it goes on where it was. Inputs and output may be URLs (hdfs://...).
To spread it over machines, start it on each with --task K --num-tasks N, then once with --merge.
"""

import argparse
import json
import os
import sys
from dataclasses import MISSING, asdict, fields
from typing import Any

from toolkit import storage
from toolkit.data.bar import show_progress
from toolkit.data.manifest import NAME, read_manifest
from toolkit.data.preparation import Preparation, name_partial
from toolkit.data.tokens import begin, merge, progress, run_spans, summarize
from toolkit.errors import ToolkitError


def main() -> int:
    """Prepare, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, defaults = parser.add_argument, {field.name: field.default for field in fields(Preparation)}
    add("inputs", nargs="*", help="files or directories (.jsonl[.gz|.zst], .parquet, .txt), datasets:NAME; none: go on")
    add("--tokenizer", help="tokenizer.json, a directory with one, or a name on the Hub")
    add("--out", required=True, help="directory of the dataset; OUT.partial until it is whole")
    add("--column", help="field that holds the text (default: %(default)s)")
    add("--validation", type=float, help="part of the documents for validation (default: %(default)s)")
    add("--split-by", choices=["hash", "index"], help="what decides a document's split (default: %(default)s)")
    add("--tokens-per-shard", type=int, help="largest shard (default: %(default)s)")
    add("--span-bytes", type=int, help="text a process takes at a time (default: a 64th, from 16 MiB to 1 GiB)")
    add("--on-error", choices=["stop", "skip"], help="what to do about a broken record (default: %(default)s)")
    add("--max-record-bytes", type=int, help="longer records count as broken (default: %(default)s)")
    add("--licence", help="licence of the text, recorded in the manifest")
    add(
        "--engine", choices=["auto", "tokenizers", "gigatoken"], default="auto", help="default: the fastest that agrees"
    )
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: %(default)s, the cores)")
    add("--task", type=int, default=0, help="which part of the work to do here, from 0")
    add("--num-tasks", type=int, default=1, help="parts of the work (default: %(default)s)")
    add("--merge", action="store_true", help="only finish a dataset whose tasks are all done")
    add("--status", action="store_true", help="only say how far it is")
    add("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(**{name: value for name, value in defaults.items() if value is not MISSING})
    asked = parser.parse_args()
    if asked.inputs and not asked.tokenizer:
        parser.error("--tokenizer is needed")
    if not 0.0 < asked.validation < 1.0 or not 0 <= asked.task < asked.num_tasks:
        parser.error("--validation must lie between 0 and 1, and --task below --num-tasks")
    try:
        summary = carry_out(asked)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(summary) if asked.json else "\n".join(f"{name:<18} {text}" for name, text in summary.items()))
    return 0


def carry_out(asked: argparse.Namespace) -> dict[str, Any]:
    """Do what is asked, and give a summary."""
    if asked.merge:
        return summarize(merge(name_partial(asked.out), asked.out))
    if asked.status and not storage.exists(storage.join(asked.out, NAME)):
        return asdict(progress(name_partial(asked.out)))
    if not asked.status:
        options = {field.name: getattr(asked, field.name) for field in fields(Preparation)}
        partial_dir: str | None = name_partial(asked.out)
        if asked.inputs:  # else go on with what was begun
            partial_dir = begin(Preparation(**{**options, "inputs": tuple(asked.inputs)}), asked.out)
        if partial_dir is not None:
            part = {"task": asked.task, "num_tasks": asked.num_tasks}
            state = progress(partial_dir, **part)
            with show_progress("tokenizing", total_bytes=state.num_bytes, done_bytes=state.num_bytes_done) as report:
                run_spans(partial_dir, **part, engine=asked.engine, jobs=asked.jobs, report=report)
            if asked.num_tasks > 1:
                return asdict(progress(partial_dir, **part))
            merge(partial_dir, asked.out)
    return summarize(read_manifest(asked.out))


if __name__ == "__main__":
    sys.exit(main())
