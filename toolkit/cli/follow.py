"""What is printed while a run goes on: its progress, or what a rank says.

Files are looked at often, the scheduler is asked seldom: once in 15 s, and when the run's own ledger changes. A hundred
people who follow their runs must not slow down a controller.
"""

import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from toolkit import records
from toolkit.cli.show import print_run
from toolkit.cli.trouble import find_batch_log, last_lines
from toolkit.cluster.base import JobState, JobStatus
from toolkit.config.schema import DataSection
from toolkit.errors import ClusterError, RunError
from toolkit.launch.identity import read_config
from toolkit.launch.jobs import job_status, look_for_job
from toolkit.launch.ledger import has_ended, read_attempts
from toolkit.launch.prepare import read_share
from toolkit.monitor import metrics
from toolkit.monitor.history import newest_steps
from toolkit.rundir import RunDir

_LOOK_S = 0.5
_ASK_S = 15.0
_SOON_S = 2.0  # when the ledger tells that something has changed
_PLAIN_PART = 0.1  # of the run, between the lines of a log


class Watch:
    """The job of a run, asked for no more often than it is worth."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._status: JobStatus | None = None
        self._asked_at: float | None = None
        self._seen: object = None

    def status(self) -> JobStatus | None:
        """Give the state of the newest job as it was when it was asked for last; None: there is none.

        A scheduler that does not answer has said nothing new.
        """
        seen, now = self._ledger_version(), time.monotonic()
        pause_s = _ASK_S if seen == self._seen else _SOON_S
        if self._asked_at is not None and now - self._asked_at < pause_s:
            return self._status
        self._asked_at, self._seen = now, seen
        try:
            self._status = job_status(self._run_dir, look_for_job(self._run_dir))
        except ClusterError:
            self._status = self._status or JobStatus(job_id="", state=JobState.PENDING, reason="Slurm does not answer")
        return self._status

    def is_live(self) -> bool:
        """Whether a job of the run waits or runs; the run itself tells when it has come to its end."""
        status = self.status()
        return status is not None and status.state.is_live and not has_ended(self._run_dir, status.job_id)

    def _ledger_version(self) -> object:
        path = self._run_dir.attempts_path
        return path.stat().st_mtime_ns if path.exists() else None


def print_log(run_dir: RunDir, *, rank: int, follow: bool) -> None:
    """Print a rank's log of the newest attempt; following, of each attempt until the job ends."""
    shown = {path: path.stat().st_size for path in _rank_logs(run_dir, rank=rank)[:-1]}
    watch = Watch(run_dir)
    while True:
        live = follow and watch.is_live()
        logs = _rank_logs(run_dir, rank=rank)
        if not logs and not live:
            _print_batch_log(run_dir, watch.status(), rank=rank)
            return
        for path in logs:
            with records.open_file(path) or io.BytesIO() as file:
                file.seek(shown.get(path, 0))
                sys.stdout.buffer.write(file.read())
                shown[path] = file.tell()
        sys.stdout.flush()
        if not live:
            return
        time.sleep(_LOOK_S)


def _print_batch_log(run_dir: RunDir, status: JobStatus | None, *, rank: int) -> None:
    """Print the end of the batch log where no rank has printed anything: its job has failed before.

    Raises:
        RunError: there is none, or other ranks have logs.
    """
    path = find_batch_log(run_dir, {"job_id": status.job_id, "batch_log": status.batch_log}) if status else None
    if path is None or not path.is_file() or any(run_dir.logs_dir.glob("*/*[0-9].out")):
        raise RunError(f"run {run_dir.name} has no log of rank {rank}\n  its job has not started, or has fewer ranks")
    print(f"no rank has a log; the end of {path}:", *last_lines(path), sep="\n")


def _rank_logs(run_dir: RunDir, *, rank: int) -> list[Path]:
    return sorted(run_dir.logs_dir.glob(f"*/{rank}.out"), key=lambda path: path.stat().st_mtime)


def follow(run_dir: RunDir, console: Console) -> None:
    """Show progress until the job ends: a live line on a terminal, else a line now and then.

    Ctrl-C leaves the job running.

    Raises:
        RunError: the run did not finish.
    """
    num_steps = read_config(run_dir).num_steps
    try:
        (_follow_live if console.is_terminal else _follow_plain)(run_dir, console, num_steps)
    except KeyboardInterrupt:
        name = run_dir.name
        console.print(f"the job goes on; stop it: python -m toolkit stop {name}, look: python -m toolkit status {name}")
        return
    print_run(run_dir, console, as_json=False)
    attempts = read_attempts(run_dir)
    if not attempts or attempts[-1].outcome != "FINISHED":
        raise RunError(f"run {run_dir.name} did not finish\n  `python -m toolkit status {run_dir.name}` says why")


def _follow_live(run_dir: RunDir, console: Console, num_steps: int) -> None:
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[numbers]}")]
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task("PENDING", total=num_steps, numbers="")
        for status, values in _poll(run_dir):
            progress.update(
                task,
                completed=values["step"],
                description=status.state.value,
                numbers=_numbers(values, num_steps),
            )


def _follow_plain(run_dir: RunDir, console: Console, num_steps: int) -> None:
    told, told_step = "", 0
    for status, values in _poll(run_dir):
        state = f"{status.state.value} {values.get('waiting', '')}".rstrip()
        if state != told or values["step"] >= told_step + num_steps * _PLAIN_PART:
            console.print(f"{status.state.value} {_numbers(values, num_steps)}", markup=False)
            told, told_step = state, values["step"]


def _numbers(values: dict[str, Any], num_steps: int) -> str:
    if metrics.LOSS not in values:
        return str(values["waiting"])
    parts = [f"{values['step']}/{num_steps}", f"loss {values[metrics.LOSS]:.3f}"]
    if metrics.TOKENS_PER_S in values:
        parts.append(f"{metrics.short(values[metrics.TOKENS_PER_S])} tok/s")
        left_s = (num_steps - values["step"]) * values[metrics.STEP_S]
        parts.append(f"eta {metrics.duration(left_s)}")
    return " | ".join(parts)


def _why_waiting(status: JobStatus, data: DataSection) -> str:
    if status.state is JobState.RUNNING:
        return "starting"
    share = read_share(data.path) if status.reason == "Dependency" and data.path else None
    return status.reason if share is None else f"data {share:.0%}"


def _poll(run_dir: RunDir) -> Iterator[tuple[JobStatus, dict[str, Any]]]:
    """Give state and newest step of a run until its job ends."""
    data, watch = read_config(run_dir).data, Watch(run_dir)
    while (status := watch.status()) is not None:
        nothing = {"step": 0, "waiting": _why_waiting(status, data)}
        yield status, next(newest_steps(run_dir.metrics_path), nothing)
        if not watch.is_live():
            return
        time.sleep(_LOOK_S)
