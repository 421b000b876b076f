"""Small real runs on emulated nodes for the benchmarks: start them, look at them, leave nothing of them behind.

As a script it waits until its standard input is closed, then ends what lives below the directory it is given.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from toolkit.cluster.base import JobState, JobStatus
from toolkit.cluster.local import LocalCluster
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.data.prepare.tokens import prepare
from toolkit.launch.jobs import state_dir
from toolkit.launch.ledger import Attempt, read_attempts
from toolkit.monitor.history import newest_steps, read_steps
from toolkit.rundir import RunDir

CHECKOUT = Path(__file__).parents[1]
_TEXT = "the cat sat on a mat and then one dog ran to some old red barn near our small house of two doors"
_LOOK_S = 0.04


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
        """Submit it."""
        given = [str(self.checkout / "configs" / "runs" / "tiny-cpu.yaml"), "--name", self.name]
        fixed = ["cluster.scheduler=local", f"run.root={self.root}", f"data.path={self.dataset}"]
        return self._call("submit.py", *given, *fixed, "model.vocab_size=320", *arguments)

    def verb(self, verb: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a verb of the command line on it: `stop`, `resume`, ..."""
        return self._call("-m", "toolkit", verb, self.name, "--root", str(self.root), *words)

    def _call(self, *words: str) -> "subprocess.CompletedProcess[str]":
        environ = {**os.environ, "PYTHONPATH": str(self.checkout), "HOME": str(self.root)}
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.checkout, env=environ, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def job_id(self) -> str:
        """Give its newest job; empty: there is none."""
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads(self.run_dir.job_path.read_text(encoding="utf-8"))["job_id"])
        return ""

    def status(self) -> JobStatus:
        """Ask for its newest job."""
        return self.cluster.state(self.job_id())

    def attempt(self) -> str:
        """Name the attempt that runs, or will run next."""
        status = self.status()
        return f"{status.job_id}.{status.restarts}"

    def attempts(self) -> list[Attempt]:
        """Read attempts.jsonl."""
        return read_attempts(self.run_dir)

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
        found = [process for process, words in _processes(self.root) if words[1:4] == wanted]
        return [process for _, process in sorted((_rank_of(process), process) for process in found)]

    def controller(self) -> psutil.Process | None:
        """Find the controller of its newest job."""
        job_dir = str(self.cluster.state_dir / "jobs" / self.job_id())
        wanted = ["-m", "toolkit.cluster.controller", job_dir]
        return next((process for process, words in _processes(self.root) if words[1:4] == wanted), None)

    def await_end(self, *, timeout_s: float) -> JobStatus:
        """Wait until no job of it is live; the time may run out."""
        deadline = time.monotonic() + timeout_s
        while (status := self.status()).state.is_live and time.monotonic() < deadline:
            time.sleep(0.1)
        return status


def _rank_of(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error, KeyError):
        return int(process.environ()["SLURM_PROCID"])
    return -1  # it ends just now


def _processes(root: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    """List the living processes of the toolkit that name something below a directory, with their command lines."""
    below = f"{root}/"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            names_it = any(word.startswith(below) for word in words[1:])
            is_ours = words[1:] and (words[1].startswith(below) or words[1:3][-1].startswith("toolkit."))
            if names_it and is_ours and process.status() != psutil.STATUS_ZOMBIE:
                yield process, words


def list_left(root: Path) -> list[str]:
    """List what still lives of the runs below a directory."""
    return [" ".join(words) for _, words in _processes(root)]


def sweep(root: Path) -> None:
    """End whatever lives of the runs below a directory, and unmount what is mounted there."""
    for _ in range(5):
        found = [process for process, _ in _processes(root)]
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()  # a controller takes its tasks with it
        psutil.wait_procs(found, timeout=10)
        if not found:
            break
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        mounted = line.split()[1]
        if mounted.startswith(f"{root}/"):
            subprocess.run(["umount", "--lazy", mounted], check=False)


@contextlib.contextmanager
def guarded(root: Path) -> Iterator[None]:
    """Leave nothing behind below a directory, also where this process is killed: another one sweeps then."""
    guard = subprocess.Popen([sys.executable, __file__, str(root)], stdin=subprocess.PIPE, start_new_session=True)
    assert guard.stdin is not None, "a pipe was asked for"
    try:
        yield
    finally:
        guard.stdin.close()
        guard.wait(timeout=120)


class Observer:
    """Notes when each attempt made its first step and which it reached: metrics.jsonl forgets what is redone."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.firsts: dict[str, tuple[float, int]] = {}
        """Of each attempt: Unix time and number of its first step."""
        self.reached: dict[str, int] = {}
        self.starts: dict[str, float] = {}
        """When the controller started its ranks, in Unix time."""
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="observer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._is_closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_closed.wait(_LOOK_S):
            status = self._run.status()
            if status.state is JobState.RUNNING and status.start_time is not None:
                self.starts[f"{status.job_id}.{status.restarts}"] = status.start_time
            newest = next(newest_steps(self._run.run_dir.metrics_path), None)
            if newest is None:
                continue
            attempt = newest["attempt"]
            if attempt not in self.firsts:
                for line in newest_steps(self._run.run_dir.metrics_path):
                    if line["attempt"] != attempt:
                        break
                    self.firsts[attempt] = (line["time"], line["step"])
            self.reached[attempt] = max(newest["step"], self.reached.get(attempt, 0))


if __name__ == "__main__":
    sys.stdin.read()
    sweep(Path(sys.argv[1]))
