"""Copy a token dataset from any path or URL to any other: verified, restartable, manifest last.

python data_prep/stage_shards.py hdfs://namenode:8020/data/corpus /scratch/corpus
"""

import argparse
import json
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from toolkit.cli.script import run
from toolkit.data.staging import Staged, stage


def main() -> int:
    """Stage, and say what was copied."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="directory or URL with a manifest.json")
    parser.add_argument("target", help="directory or URL to make; what is there already is verified and kept")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON on the last line")
    asked = parser.parse_args()
    console = Console(stderr=True)
    started = time.monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("staging", total=None)
        staged = stage(
            asked.source,
            asked.target,
            begin=lambda num_bytes: progress.update(task, total=num_bytes),
            report=lambda num_bytes: progress.advance(task, num_bytes),
        )
    show(staged, asked.target, seconds=time.monotonic() - started, as_json=asked.json)
    return 0


def show(staged: Staged, target: str, *, seconds: float, as_json: bool) -> None:
    """Print the summary."""
    rate = staged.copied_bytes / max(seconds, 1e-9) / 1e6
    print(f"{target}: {staged.num_files} files, all as the manifest says")
    print(
        f"  {staged.copied_bytes:,} bytes copied in {seconds:.1f} s ({rate:.0f} MB/s), {staged.kept_bytes:,} were there"
    )
    if as_json:
        figures = {"files": staged.num_files, "copied_bytes": staged.copied_bytes, "kept_bytes": staged.kept_bytes}
        print(json.dumps({**figures, "seconds": round(seconds, 3), "mb_per_s": round(rate, 1)}))


if __name__ == "__main__":
    sys.exit(run(main))
