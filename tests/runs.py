"""Start small real runs through the command line, and wait for them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.devcluster.sites import Site
from toolkit.cli import show
from toolkit.cluster.base import JobState
from toolkit.launch.ledger import read_attempts
from toolkit.monitor.history import read_steps
from toolkit.rundir import RunDir

CHECKOUT = Path(__file__).parents[1]
TINY = CHECKOUT / "configs" / "runs" / "tiny-cpu.yaml"


def submit_command(root: Path, *arguments: str, name: str = "tiny") -> list[str]:
    command = [sys.executable, str(CHECKOUT / "submit.py"), str(TINY), "--name", name, *arguments]
    return [*command, f"run.root={root}", "model.vocab_size=320"]


def submit(
    root: Path, dataset: Path, *arguments: str, name: str = "tiny", site: Site | None = None
) -> subprocess.CompletedProcess[str]:
    return submit_without_data(root, f"data.path={dataset}", *arguments, name=name, site=site)


def submit_without_data(
    root: Path, *arguments: str, name: str = "tiny", site: Site | None = None
) -> subprocess.CompletedProcess[str]:
    return call(submit_command(root, *arguments, name=name), home=root, site=site)


def verb(root: Path, *words: str, site: Site | None = None) -> subprocess.CompletedProcess[str]:
    return verb_without_root(root, *words, "--root", str(root), site=site)


def verb_without_root(home: Path, *words: str, site: Site | None = None) -> subprocess.CompletedProcess[str]:
    return call([sys.executable, "-m", "toolkit", *words], home=home, site=site)


def call(command: list[str], *, home: Path, site: Site | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout, here or as the user of a site."""
    if site is not None:
        return site.run(command, timeout_s=200, HOME=str(home))
    environ = {**os.environ, "HOME": str(home)}
    return subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, check=False, timeout=200)


def rank_processes(run_dir: RunDir) -> list[psutil.Process]:
    """Find the ranks of a run that live on this machine, in rank order; launchers around them are left out."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:] == ["-m", "toolkit.launch.job", str(run_dir.root)]:
            found.append(process)
    return sorted(found, key=lambda process: int(process.environ()["SLURM_PROCID"]))


def wait(run_dir: RunDir, *, timeout_s: float = 200) -> dict[str, Any]:
    """Wait until the job of a run has ended; give what `status` knows."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        run = show.describe(run_dir)
        if not JobState(run["job"]["state"]).is_live:
            return run
        time.sleep(0.3)
    raise AssertionError(f"still {run['job']} after {timeout_s} s")


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 120, said: Callable[[], object] = str) -> None:
    """Wait until a condition holds; else fail with what `said` gives."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not after {timeout_s} s: {said()}"
        time.sleep(0.1)


def wait_for_step(run_dir: RunDir, step: int, *, timeout_s: float = 120) -> None:
    wait_until(
        lambda: len(read_steps(run_dir.metrics_path)) >= step,
        timeout_s=timeout_s,
        said=lambda: show.describe(run_dir),
    )


@contextmanager
def held(run_dir: RunDir, step: int) -> Iterator[None]:
    """Keep a run from getting further than a step while something slow is done, and from being done before."""
    wait_for_step(run_dir, step)
    ranks = rank_processes(run_dir)
    assert ranks, show.describe(run_dir)
    for rank in ranks:
        rank.suspend()
    try:
        yield
    finally:
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):  # it was to end
                rank.resume()


def wait_for_attempts(run_dir: RunDir, number: int, *, ended: bool, timeout_s: float = 120) -> None:
    """Wait until so many attempts have begun, or have ended and it is decided what comes next."""

    def is_so() -> bool:
        attempts = read_attempts(run_dir)
        return len(attempts) >= number and (not ended or bool(attempts[number - 1].next))

    wait_until(is_so, timeout_s=timeout_s, said=lambda: show.describe(run_dir))


def losses(run_dir: RunDir) -> list[float]:
    steps = read_steps(run_dir.metrics_path)
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    return [line["train/loss"] for line in steps]
