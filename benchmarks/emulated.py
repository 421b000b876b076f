"""Small real runs on emulated nodes for the benchmarks: start them, look at them, find their processes."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from toolkit.cluster.base import JobStatus
from toolkit.cluster.local import LocalCluster
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.data.prepare.tokens import prepare
from toolkit.launch.submit import state_dir
from toolkit.monitor.history import newest_steps, read_steps
from toolkit.rundir import RunDir

CHECKOUT = Path(__file__).parents[1]
_TEXT = "the cat sat on a mat and then one dog ran to some old red barn near our small house of two doors"
_LIVE = ("RUNNING", "PENDING", "REQUEUED", "COMPLETING")


def make_dataset(directory: Path) -> Path:
    """Make a token dataset of made sentences, 60,000 tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    words = _TEXT.split(" ")
    texts = [" ".join(words[(i * k + k) % len(words)] for k in range(60 + i % 7)) + f" {i}" for i in range(1000)]
    corpus = directory / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = directory / "tokenizer.json"
    train_tokenizer([str(corpus)], column="text", vocab_size=300, path=tokenizer)
    prepare(Preparation(inputs=(str(corpus),), tokenizer=str(tokenizer), validation=0.05), directory / "dataset")
    return directory / "dataset"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run below a root directory, driven by the command line of a checkout."""

    root: Path
    name: str
    dataset: Path
    checkout: Path = CHECKOUT

    @property
    def run_dir(self) -> RunDir:
        """Its directory."""
        return RunDir(self.root / self.name)

    @property
    def cluster(self) -> LocalCluster:
        """The emulated nodes."""
        return LocalCluster(state_dir(self.root))

    def submit(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Submit it, or go on with it."""
        given = [str(self.checkout / "configs" / "runs" / "tiny-cpu.yaml"), "--name", self.name]
        fixed = ["cluster.scheduler=local", f"run.root={self.root}", f"data.path={self.dataset}"]
        return self._call("submit.py", *given, *fixed, "model.vocab_size=320", *arguments)

    def verb(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a verb of the command line on it: `stop`, `resume`, ..."""
        verb, *rest = words
        return self._call("-m", "toolkit", verb, self.name, "--root", str(self.root), *rest)

    def _call(self, *words: str) -> "subprocess.CompletedProcess[str]":
        environ = {**os.environ, "PYTHONPATH": str(self.checkout), "HOME": str(self.root)}
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.checkout, env=environ, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def job_id(self) -> str | None:
        """Give the newest job; None: there is none."""
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads(self.run_dir.job_path.read_text(encoding="utf-8"))["job_id"])
        return None

    def status(self) -> JobStatus | None:
        """Ask for its newest job."""
        job_id = self.job_id()
        return None if job_id is None else self.cluster.state(job_id)

    def is_live(self) -> bool:
        """Whether a job of it waits or runs."""
        status = self.status()
        return status is not None and status.state.value in _LIVE

    def step(self) -> int:
        """Give the newest step that was done."""
        newest = next(newest_steps(self.run_dir.metrics_path), None)
        return int(newest["step"]) if newest else 0

    def steps(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl."""
        return read_steps(self.run_dir.metrics_path)

    def ranks(self) -> list[psutil.Process]:
        """Find the living ranks, in rank order."""
        wanted = ["-m", "toolkit.launch.job", str(self.run_dir.root)]
        found = [(place, process) for place, process, words in processes() if words[1:] == wanted]
        return [process for _, process in sorted(found, key=lambda pair: pair[0])]

    def controllers(self) -> list[psutil.Process]:
        """Find the controllers of all jobs below the root."""
        jobs = str(self.cluster.state_dir / "jobs") + "/"
        return [
            process
            for _, process, words in processes()
            if words[1:3] == ["-m", "toolkit.cluster.controller"] and words[-1].startswith(jobs)
        ]

    def await_step(self, step: int, *, timeout_s: float) -> bool:
        """Wait until a step is done; False: it has not been, in time or before the job ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.step() < step:
            if not self.is_live() and self.step() < step:
                return False
            time.sleep(0.05)
        return self.step() >= step

    def await_end(self, *, timeout_s: float) -> JobStatus | None:
        """Wait until no job of it is live."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.is_live():
            time.sleep(0.1)
        return self.status()


def processes() -> Iterator[tuple[int, psutil.Process, list[str]]]:
    """List living processes with their rank (-1: none) and command line."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ValueError):
            words = process.cmdline()
            if len(words) > 2 and words[1] == "-m" and process.status() != psutil.STATUS_ZOMBIE:
                rank = process.environ().get("SLURM_PROCID", "-1") if "toolkit.launch.job" in words else "-1"
                yield int(rank), process, words


def end_all(runs: Sequence[Run]) -> None:
    """Kill whatever of the runs is alive: controllers take their ranks with them."""
    for run in runs:
        for process in [*run.controllers(), *run.ranks()]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs([*run.controllers(), *run.ranks()], timeout=10)
