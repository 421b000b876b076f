"""What each verb costs the controller: remote procedure calls, as sdiag counts them, and commands of Slurm.

A real Slurm is started. Some runs wait in its queue (held), one runs: that is what `status` and followers look at.
Followers are watched for a while; what the running job and the nodes ask for by themselves meanwhile is taken off.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from emulated import CHECKOUT, make_dataset

sys.path.insert(0, str(CHECKOUT))

from tests.devcluster.shapes import mini
from tests.devcluster.sites import started

_COMMANDS = ("sbatch", "scontrol", "squeue", "sinfo", "scancel", "sacct", "sacctmgr")
# of nodes, of jobs, and of sdiag itself
_NOT_OURS = re.compile(r"MESSAGE_|REQUEST_(PING|STATS_INFO|COMPLETE|STEP_COMPLETE|JOB_STEP_CREATE|JOB_USER_INFO_NODE)")


def main() -> None:
    """Count and print a table, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30, help="runs that wait (default: %(default)s)")
    parser.add_argument("--followers", type=int, default=3, help="that follow one run (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="they are watched for (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load") as name, slurm(Path(name)) as counted:
        figures = measure(Path(name), counted, asked)
    for what, (calls, commands) in figures.items():
        print(f"{what:<42} {calls:6.1f} RPCs  {commands:6.1f} commands")
    if asked.json:
        print(json.dumps(figures))


def measure(directory: Path, counted: Path, asked: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Count for each verb; followers by minute and follower."""
    root, dataset = directory / "runs", make_dataset(directory / "data")
    tiny = ["configs/runs/tiny-cpu.yaml", "model.vocab_size=320", f"data.path={dataset}", f"run.root={root}"]
    tiny += ["--nodes", "1", "--time", "30m", "cluster.cpus_per_task=1"]
    figures = {}
    toolkit("submit", *tiny, "--name", "long", "run.tokens=200_000_000")
    hold = "cluster.sbatch_extra={hold: true}"
    with counting(counted) as found:
        toolkit("submit", *tiny, "--name", "held0", hold)
    figures["submit"] = found[0]
    for number in range(1, asked.runs):
        toolkit("submit", *tiny, "--name", f"held{number}", hold)
    at = ("--root", str(root))
    verbs = {
        f"status of {asked.runs + 1} runs": ("status", *at),
        "status of one run": ("status", "long", *at),
        "logs": ("logs", "long", *at),
        "nodes": ("nodes", *at),
        "cluster": ("cluster", "--nodes", "2", *at),
        "submit --dry-run": ("submit", *tiny, "--name", "dry", "--dry-run"),
        "cancel": ("cancel", "held0", *at),
        "resume": ("resume", "held0", *at),
    }
    for what, words in verbs.items():
        with counting(counted) as found:
            toolkit(*words)
        figures[what] = found[0]
    figures["logs --follow, a minute, each"] = follow(counted, ["logs", "long", "--follow", *at], asked)
    return figures


def follow(counted: Path, words: Sequence[str], asked: argparse.Namespace) -> tuple[float, float]:
    """Count what a follower costs in a minute, without what goes on anyhow."""
    with counting(counted) as quiet:
        time.sleep(asked.seconds)
    command = [sys.executable, "-m", "toolkit", *words]
    with contextlib.ExitStack() as ending:
        for _ in range(asked.followers):
            follower = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
            ending.callback(follower.wait)
            ending.callback(follower.terminate)
        time.sleep(5.0)  # their first look
        with counting(counted) as found:
            time.sleep(asked.seconds)
    each = asked.followers * asked.seconds / 60
    calls, commands = ((one - other) / each for one, other in zip(found[0], quiet[0], strict=True))
    return calls, commands


def toolkit(*words: str) -> None:
    """Run a verb."""
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", *words], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def counting(counted: Path) -> Iterator[list[tuple[float, float]]]:
    """Count calls and commands of what happens meanwhile; one pair is added to the list at the end."""
    found: list[tuple[float, float]] = []
    before = count_calls(), count_commands(counted)
    yield found
    after = count_calls(), count_commands(counted)
    found.append((after[0] - before[0], after[1] - before[1]))


def count_calls() -> int:
    """Sum what sdiag says of calls by their type, for those that commands of users make."""
    said = subprocess.run(["sdiag"], capture_output=True, text=True, check=True).stdout
    by_type = said.partition("by message type")[2].partition("by user")[0]
    rows = re.findall(r"^\s+(\w+)\s+\(\s*\d+\) count:(\d+)", by_type, flags=re.MULTILINE)
    return sum(int(count) for name, count in rows if not _NOT_OURS.match(name))


def count_commands(counted: Path) -> int:
    """Count the commands of Slurm that were run."""
    return len(counted.read_text(encoding="utf-8").splitlines())


@contextlib.contextmanager
def slurm(directory: Path) -> Iterator[Path]:
    """Start a Slurm, and count its commands; gives the file in which each leaves a line."""
    bin_dir, counted = directory / "bin", directory / "counted"
    bin_dir.mkdir()
    counted.touch()
    for name in _COMMANDS:
        path = bin_dir / name
        path.write_text(f'#!/bin/bash\necho {name} >>{counted}\nexec {shutil.which(name)} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    with started(mini(nodes=2, gpus=0, cpus=8), directory / "site") as site:
        os.environ["PATH"] = f"{bin_dir}:{os.environ['PATH']}"
        os.environ["SLURM_CONF"] = str(site.conf)
        yield counted


if __name__ == "__main__":
    main()
