"""Start small real runs through the command line, and wait for them."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from toolkit.cli import show
from toolkit.rundir import RunDir

CHECKOUT = Path(__file__).parents[1]
TINY = CHECKOUT / "configs" / "runs" / "tiny-cpu.yaml"


def submit(root: Path, dataset: Path, *arguments: str, name: str = "tiny") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "submit.py"), str(TINY), "--name", name, *arguments]
    settings = [f"run.root={root}", f"data.path={dataset}", "model.vocab_size=320"]
    environ = {**os.environ, "HOME": str(root)}
    return subprocess.run(
        [*command, *settings],
        cwd=CHECKOUT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def wait(run_dir: RunDir, *, timeout_s: float = 200) -> dict[str, Any]:
    """Wait until the job of a run has ended; give what `status` knows."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        run = show.describe(run_dir)
        if run["job"]["state"] not in {"PENDING", "RUNNING", "REQUEUED", "COMPLETING"}:
            return run
        time.sleep(0.3)
    raise AssertionError(f"still {run['job']} after {timeout_s} s")


def wait_for_step(run_dir: RunDir, step: int, *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if len(show.read_metrics(run_dir)) >= step:
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} after {timeout_s} s: {show.describe(run_dir)}")


def losses(run_dir: RunDir) -> list[float]:
    steps = show.read_metrics(run_dir)
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    return [line["train/loss"] for line in steps]
