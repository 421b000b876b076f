"""From the start of the ranks to the first training step: this checkout against a revision, by turns.

A tiny run of three steps on emulated nodes, which share this machine's cores; each start is timed on the clock and in
CPU seconds of a rank. Printed is the ratio of the medians.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from emulated import CHECKOUT, Run, guarded, make_dataset

_TIMEOUT_S = 300.0
_POLL_S = 0.03


def main() -> None:
    """Time the starts and print a table, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="HEAD", help="revision of git to compare with (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each side and size (default: %(default)s)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4], help="emulated nodes (default: 2 4)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, guarded(Path(directory)):
        root = Path(directory)
        sides = {"this checkout": CHECKOUT, asked.against: unpack(asked.against, root / "before")}
        figures = {}
        for nodes in asked.nodes:
            figures[f"{nodes} nodes"] = found = compare(root, sides, nodes=nodes, rounds=asked.rounds)
            print(f"{nodes} nodes: {describe(found)}", flush=True)
    if asked.json:
        print(json.dumps(figures))


def unpack(revision: str, directory: Path) -> Path:
    """Lay a revision of the checkout beside it."""
    directory.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", revision], cwd=CHECKOUT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory


def compare(root: Path, sides: dict[str, Path], *, nodes: int, rounds: int) -> dict[str, float]:
    """Start a run of each side by turns; the first round warms the page cache and is left out."""
    dataset = make_dataset(root / f"data-{nodes}")
    times: list[list[tuple[float, float]]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for side, checkout in list(enumerate(sides.values()))[:: 1 if number % 2 else -1]:
            name = f"run-{nodes}-{number}-{side}"
            run = Run(root=root / "runs", name=name, dataset=dataset, checkout=checkout)
            measured = time_start(run, nodes=nodes)
            if number:
                times[side].append(measured)
    (wall_s, cpu_s), (wall_before_s, cpu_before_s) = (
        (statistics.median(wall for wall, _ in side), statistics.median(cpu for _, cpu in side)) for side in times
    )
    return {
        "wall_s": wall_s,
        "wall_before_s": wall_before_s,
        "wall_ratio": wall_s / wall_before_s,
        "rank_cpu_s": cpu_s,
        "rank_cpu_before_s": cpu_before_s,
        "rank_cpu_ratio": cpu_s / cpu_before_s,
    }


def time_start(run: Run, *, nodes: int) -> tuple[float, float]:
    """Give seconds from the start of the job's ranks to the first step, and CPU seconds of the mean rank until then."""
    done = run.submit("--nodes", str(nodes), "run.tokens=3072", "checkpoint.save_every=1000", "monitor.eval_every=null")
    if done.returncode != 0:
        sys.exit(f"{run.checkout}: {done.stderr}")
    cpu_s = _watch_until_first_step(run, nodes)
    status = run.status()
    assert status.start_time is not None, f"job {status.job_id} has not started"
    run.await_end(timeout_s=_TIMEOUT_S)
    return float(run.steps()[0]["time"]) - status.start_time, cpu_s


def _watch_until_first_step(run: Run, nodes: int) -> float:
    deadline = time.monotonic() + _TIMEOUT_S
    ranks: list[psutil.Process] = []
    spent = [0.0] * nodes
    while not run.step():
        if time.monotonic() > deadline or not (run.status().state.is_live or run.step()):
            sys.exit(f"no first step: {run.run_dir.root}; {run.status()}")
        if len(ranks) < nodes:
            ranks = run.ranks()
        for rank, process in enumerate(ranks):
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                spent[rank] = used.user + used.system
        time.sleep(_POLL_S)
    return sum(spent) / nodes


def describe(found: dict[str, float]) -> str:
    """Say the figures in a line."""

    def against(name: str) -> str:
        return f"{found[f'{name}_s']:.2f} s against {found[f'{name}_before_s']:.2f} s ({found[f'{name}_ratio']:.2f})"

    return f"first step after {against('wall')}; CPU of a rank {against('rank_cpu')}; {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
