"""Turn text into a token dataset: Arrow shards that `datasets` opens, and a manifest.json.

python data_prep/tokenize_corpus.py corpus.jsonl --tokenizer tokenizer.json --out data/corpus
"""

import argparse
import sys
from pathlib import Path

from toolkit.data.preparation import Preparation
from toolkit.data.tokens import prepare
from toolkit.errors import ToolkitError


def main() -> int:
    """Prepare, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs", nargs="+", help="files or directories (.jsonl[.gz|.zst], .parquet, .txt), datasets:NAME"
    )
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json, a directory with one, or a name on the Hub")
    parser.add_argument("--out", type=Path, required=True, help="directory of the dataset")
    parser.add_argument("--column", default="text", help="field that holds the text (default: %(default)s)")
    parser.add_argument(
        "--validation",
        type=float,
        default=0.01,
        help="part of the documents kept for validation (default: %(default)s)",
    )
    parser.add_argument(
        "--split-by",
        choices=["hash", "index"],
        default="hash",
        help="what decides a document's split (default: %(default)s)",
    )
    parser.add_argument(
        "--tokens-per-shard", type=int, default=100_000_000, help="largest shard (default: %(default)s)"
    )
    parser.add_argument("--licence", default="", help="licence of the text, recorded in the manifest")
    options = vars(parser.parse_args())
    if not 0.0 < options["validation"] < 1.0:
        parser.error("--validation must lie between 0 and 1")
    out_dir = options.pop("out")
    try:
        manifest, made = prepare(Preparation(**{**options, "inputs": tuple(options["inputs"])}), out_dir)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(
        f"{out_dir}: {'made' if made else 'up to date'}, {manifest.dtype}, vocabulary {manifest.tokenizer.vocab_size}"
    )
    for split, shards in manifest.splits.items():
        tokens, documents = manifest.num_tokens(split), manifest.num_documents(split)
        print(f"  {split}: {tokens:,} tokens, {documents:,} documents, {len(shards)} shards")
    print(f"  guessing by unigram frequencies costs {manifest.unigram_loss:.3f} nats a token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
