"""Turn text into a token dataset: Arrow shards that `datasets` opens, and a manifest.json.

python data_prep/tokenize_corpus.py corpus.jsonl --tokenizer tokenizer.json --out data/corpus
Started again, it goes on where it was. Inputs and output may be URLs. --slurm N spreads it over a cluster.
Without: --task K --num-tasks N on each machine, then once with --out alone.
"""

import argparse
import json
import os
import sys
from dataclasses import MISSING, asdict, fields
from typing import Any

from toolkit.cli.script import run
from toolkit.data.manifest import read_manifest
from toolkit.data.prepare.bar import show_progress
from toolkit.data.prepare.preparation import Preparation, name_partial
from toolkit.data.prepare.tokens import begin, merge, progress, run_spans, summarize
from toolkit.launch.prepare import hand_in, stands


def main() -> int:
    """Prepare, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
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
    add("--eos", metavar="TOKEN", help="what ends a text (default: what the tokenizer declares)")
    add("--keep-special", action="store_true", help="control tokens in a text become control tokens, not text")
    add("--lossy", action="store_true", help="take a tokenizer that loses text")
    add("--engine", choices=["auto", "tokenizers", "gigatoken"], default="auto", help="auto: the fastest that agrees")
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: %(default)s, the cores)")
    add("--slurm", type=int, metavar="N", help="hand it in as N tasks of a job array (as the site profile says)")
    add("--task", type=int, default=0, help="which part of the work to do here, from 0")
    add("--num-tasks", type=int, default=1, help="parts of the work (default: %(default)s)")
    add("--status", action="store_true", help="only say how far it is")
    add("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(**{one.name: one.default for one in fields(Preparation) if one.default is not MISSING})
    asked = parser.parse_args()
    if bool(asked.inputs) != bool(asked.tokenizer) or (asked.slurm and not asked.inputs):
        parser.error("inputs and --tokenizer are needed together; with neither, it goes on with what was begun")
    summary = carry_out(asked, {field.name: getattr(asked, field.name) for field in fields(Preparation)})
    print(json.dumps(summary) if asked.json else "\n".join(f"{name:<18} {text}" for name, text in summary.items()))
    return 0


def carry_out(asked: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked, and give a summary."""
    wanted = Preparation(**{**options, "inputs": tuple(asked.inputs)})
    if asked.slurm:
        return hand_in(wanted, out=asked.out, num_tasks=asked.slurm)
    partial_dir = begin(wanted, asked.out) if asked.inputs and not asked.status else name_partial(asked.out)
    if partial_dir is None or stands(asked.out):
        return summarize(read_manifest(asked.out))
    part = {"task": asked.task, "num_tasks": asked.num_tasks}
    if not asked.status:
        state = progress(partial_dir, **part)
        with show_progress("tokenizing", total_bytes=state.num_bytes, done_bytes=state.num_bytes_done) as report:
            run_spans(partial_dir, **part, engine=asked.engine, jobs=asked.jobs, report=report)
    if asked.status or asked.num_tasks > 1:
        return asdict(progress(partial_dir, **part))
    return summarize(merge(partial_dir, asked.out))


if __name__ == "__main__":
    sys.exit(run(main))
