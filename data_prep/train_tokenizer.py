"""Train a byte-level BPE tokenizer on texts of your own."""

import argparse
import json
import sys
from pathlib import Path

from toolkit.cli.script import run
from toolkit.data.prepare.tokenizer import train_tokenizer


def main() -> int:
    """Train, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "inputs", nargs="+", help="files or directories (.jsonl[.gz|.zst], .parquet, .txt), datasets:NAME"
    )
    parser.add_argument("--vocab-size", type=int, default=32_000, help="tokens to learn (default: %(default)s)")
    parser.add_argument("--column", default="text", help="field that holds the text (default: %(default)s)")
    parser.add_argument(
        "--on-error", choices=["stop", "skip"], default="stop", help="at a broken record (default: %(default)s)"
    )
    parser.add_argument(
        "--max-record-bytes", type=int, default=8 << 20, help="longer records count as broken (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="tokenizer.json to write; one that exists is kept")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on the last line")
    asked = parser.parse_args()
    if asked.out.is_file():
        print(f"{asked.out}: exists, kept (delete it to train another)")
        return 0
    size = train_tokenizer(
        asked.inputs,
        column=asked.column,
        vocab_size=asked.vocab_size,
        path=asked.out,
        on_error=asked.on_error,
        max_record_bytes=asked.max_record_bytes,
    )
    short = f" (the text gives no more than that, {asked.vocab_size} were asked for)" if size < asked.vocab_size else ""
    print(f"{asked.out}: {size} tokens{short}")
    if asked.json:
        print(json.dumps({"path": str(asked.out), "vocab_size": size}))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
