"""What the reading verbs print."""

import errno
import itertools
import json
import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from toolkit.cli.rehearse import describe_rehearsal
from toolkit.cli.trouble import print_trouble
from toolkit.cluster.base import Cluster, JobState, JobStatus
from toolkit.config.load import Loaded
from toolkit.config.schema import DataSection, to_dict
from toolkit.data.mixture import mean_unigram_loss, open_members
from toolkit.errors import ClusterError, RecordError, ToolkitError
from toolkit.launch.archive import upload_run
from toolkit.launch.identity import original_of, read_config
from toolkit.launch.jobs import Queue, job_status, look_for_job, look_for_jobs
from toolkit.launch.ledger import Attempt, find_job_record, read_attempts, read_failures, read_refusals
from toolkit.launch.measured import describe_measured
from toolkit.launch.prepare import PreparationJobs
from toolkit.monitor import metrics
from toolkit.monitor.history import newest_steps, read_first_step
from toolkit.redact import redact_values
from toolkit.rundir import RunDir

_SHOWN_NODES = 4


def print_json(value: Any) -> None:
    """Print a value as JSON, without secrets."""
    print(json.dumps(redact_values(value), indent=1))


def list_runs(root: Path) -> list[RunDir]:
    """List the runs of a directory by name, also those of others that may not be read.

    Raises:
        RecordError: the directory may not be read.
    """
    try:
        entries = sorted(root.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        what = f"{root} cannot be read: {error.strerror}"
        raise RecordError(f"{what}\n  it should be the directory of all runs") from error
    runs = (RunDir(entry.absolute()) for entry in entries if not entry.name.startswith("."))
    return [run for run in runs if is_run(run)]


def is_run(run_dir: RunDir) -> bool:
    """Whether a directory is a run, or may be one that others may not read."""
    try:
        os.stat(run_dir.config_path)
    except OSError as error:
        return error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
    return True


def describe(run_dir: RunDir, queue: Queue | None = None) -> dict[str, Any]:
    """Gather what is known of a run as plain values, with what was expected and measured."""
    return {**_outline(run_dir, queue or look_for_job(run_dir)), **describe_measured(run_dir)}


def _outline(run_dir: RunDir, queue: Queue) -> dict[str, Any]:
    """Gather what is known of a run but for what its steps took on the whole."""
    cfg = read_config(run_dir)
    status, record, original = _ask(run_dir, queue), find_job_record(run_dir), original_of(run_dir)
    attempts = read_attempts(run_dir)
    first, last = read_first_step(run_dir.metrics_path), next(newest_steps(run_dir.metrics_path), None)
    failures = read_failures(run_dir, attempts[-1].attempt) if attempts else _newest_failures(run_dir)
    return {
        "run": run_dir.name,
        "directory": str(run_dir.root),
        "copy_of": None if original is None else str(original),
        "state": _state(status, attempts, original),
        "job": None if status is None else _plain_status(status),
        "prepared_in": None if record is None else record.prepared_in,
        "rehearsal": describe_rehearsal(record, num_attempts=len(attempts)),
        "step": last["step"] if last else 0,
        "num_steps": cfg.num_steps,
        "first_loss": first.get(metrics.LOSS) if first else None,
        "last_loss": last.get(metrics.LOSS) if last else None,
        "validation_loss": _newest_validation(run_dir, every=cfg.monitor.eval_every),
        "unigram_loss": _unigram_loss(cfg.data),
        "tokens_per_s": last.get(metrics.TOKENS_PER_S) if last else None,
        "attempts": [_plain_attempt(attempt, status) for attempt in attempts],
        "refusals": read_refusals(run_dir),
        "failures": [asdict(failure) for failure in failures],
    }


def _ask(run_dir: RunDir, queue: Queue) -> JobStatus | None:
    """Ask for the job of a run; where nobody answers, the run itself has something to tell all the same."""
    try:
        return job_status(run_dir, queue)
    except ClusterError as error:
        record = find_job_record(run_dir)
        reason = str(error).splitlines()[0]
        return JobStatus(job_id=record.job_id if record else "", state=JobState.UNKNOWN, reason=reason)


def _state(status: JobStatus | None, attempts: Sequence[Attempt], original: Path | None) -> str:
    """Say what the run does: its job's state, or how its newest attempt ended where no job is left."""
    if status is None:
        return "-" if original is None else "COPY"
    is_told = not status.state.is_live and attempts and attempts[-1].outcome != "RUNNING"
    return attempts[-1].outcome if is_told else status.state.value


def _newest_validation(run_dir: RunDir, *, every: int | None) -> float | None:
    steps = itertools.islice(newest_steps(run_dir.metrics_path), every or 0)
    found = (step[metrics.VALIDATION_LOSS] for step in steps if metrics.VALIDATION_LOSS in step)
    return next(found, None)


def _unigram_loss(data: DataSection) -> float | None:
    try:
        return mean_unigram_loss(open_members(data.weights))
    except ToolkitError:  # a run can be looked at when its data has gone
        return None


def _newest_failures(run_dir: RunDir) -> list[Any]:
    logs = sorted(run_dir.logs_dir.glob("*/*.failure.json"), key=lambda path: path.stat().st_mtime)
    return read_failures(run_dir, logs[-1].parent.name) if logs else []


def _plain_attempt(attempt: Attempt, status: JobStatus | None) -> dict[str, Any]:
    """Give an attempt; one that could not tell its end has that of its job."""
    plain = asdict(attempt)
    if attempt.outcome == "RUNNING" and status is not None and not status.state.is_live:
        plain["outcome"], plain["reason"] = status.state.value, status.exit_note or status.reason
    return plain


def _plain_status(status: JobStatus) -> dict[str, Any]:
    return {**asdict(status), "state": status.state.value}


def print_preparation(jobs: PreparationJobs, cluster: Cluster, console: Console, *, with_scripts: bool) -> None:
    """Say which jobs make the dataset before the run."""
    console.print(
        f"data       {jobs.out} is made first, by {jobs.num_tasks} tasks and a last one; {jobs.jobs_dir}/logs"
    )
    for name, spec in (("share", jobs.share), ("merge", jobs.merge)) if with_scripts else ():
        console.print(f"\n{jobs.jobs_dir}/{name}.sbatch would be:\n\n{cluster.render(spec)}", markup=False)


def upload(run_dir: RunDir, url: str, console: Console) -> list[str]:
    """Copy a run with a bar of the bytes that are done; give the names of the files beside checkpoints."""
    columns = (TextColumn("copied"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        return upload_run(run_dir, url, report=lambda num_bytes: progress.advance(task, num_bytes))


def print_runs(root: Path, console: Console, *, as_json: bool) -> None:
    """List the runs, a line each."""
    queue = look_for_jobs(root)
    look = describe if as_json else _outline
    runs = [_look(run, look, queue) for run in list_runs(root)]
    if as_json:
        print_json(runs)
        return
    if not runs:
        console.print(f"no runs in {root}; start one: python submit.py --nodes 8")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "job", "state", "step", "loss", "validation"):
        table.add_column(name)
    for run in runs:
        if "unreadable" in run:
            table.add_row(run["run"], "-", "unreadable", "-", "-", "-")
            continue
        job = run["job"] or {"job_id": "-", "state": "-"}
        losses = [_number(run[key]) for key in ("last_loss", "validation_loss")]
        table.add_row(run["run"], job["job_id"], run["state"], f"{run['step']}/{run['num_steps']}", *losses)
    console.print(table)
    for run in runs:
        if "unreadable" in run:
            console.print(f"{run['run']}: {run['unreadable']}", markup=False)


def _look(run_dir: RunDir, look: Callable[[RunDir, Queue], dict[str, Any]], queue: Queue) -> dict[str, Any]:
    """Look at one of many runs: damage, or an owner who lets nobody in, must not hide the others."""
    try:
        return look(run_dir, queue)
    except PermissionError as error:
        why = f"{error.filename}: {error.strerror}{_tell_owner(run_dir)}"
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
    except ToolkitError as error:
        why = str(error).splitlines()[0]
    return {"run": run_dir.name, "directory": str(run_dir.root), "unreadable": why}


def _tell_owner(run_dir: RunDir) -> str:
    """Say whose a run is, as far as that can be seen."""
    try:
        status = os.stat(run_dir.root)
        return f"; it belongs to {pwd.getpwuid(status.st_uid).pw_name}, with mode {status.st_mode & 0o777:o}"
    except (OSError, KeyError):
        return ""


def print_run(run_dir: RunDir, console: Console, *, as_json: bool) -> None:
    """Show one run: job, progress, attempts, and what went wrong."""
    run = describe(run_dir)
    if as_json:
        print_json(run)
        return
    job = run["job"]
    if run["copy_of"] is not None:
        resume = f"python -m toolkit resume {run['run']}"
        console.print(f"run {run['run']}: a copy of {run['copy_of']}, with no job of its own; {resume}", markup=False)
    if job is not None:
        progress = f"{run['state']}, step {run['step']}/{run['num_steps']}"
        console.print(f"run {run['run']}: {progress}; {_job_text(job)}", markup=False)
    console.print(f"loss: first {_number(run['first_loss'])}, last {_number(run['last_loss'])}, "
                  f"validation {_number(run['validation_loss'])}; "
                  f"always guessing by unigram frequencies {_number(run['unigram_loss'])}")  # fmt: skip
    if run["comparison"] is not None:
        console.print(run["comparison"], markup=False)
    for attempt in run["attempts"]:
        console.print(_attempt_text(attempt), markup=False)
    for attempt, words in run["refusals"].items():
        console.print(f"attempt {attempt} was turned away: {words}", markup=False)
    print_trouble(run_dir, run, console)
    console.print(f"directory {run['directory']}")


def _job_text(job: dict[str, Any]) -> str:
    """Say which job a run has and what it does."""
    why = f" ({job['reason']})" if job["reason"] else ""
    if not job["job_id"]:
        return f"a job was handed in, and whether it was taken is not known{why}"
    if job["state"] == JobState.UNKNOWN.value and not why:
        return f"job {job['job_id']} has ended"  # the scheduler has forgotten it, and the run tells the rest
    return f"job {job['job_id']} {job['state']}{why}"


def _attempt_text(attempt: dict[str, Any]) -> str:
    """Say what an attempt did, what ended it and what came next."""
    nodes = attempt["nodes"]
    where = " ".join(nodes) if len(nodes) <= _SHOWN_NODES else f"{nodes[0]} ... {nodes[-1]} ({len(nodes)} nodes)"
    first, last = attempt["first_step"], attempt["last_step"]
    steps = "no step" if first is None else f"from step {first}" if last is None else f"steps {first}-{last}"
    again = f" ({attempt['redone']} done again)" if attempt["redone"] else ""
    lines = [f"attempt {attempt['attempt']} on {where} [{attempt['layout']}]: {steps}{again}, {attempt['outcome']}"]
    if attempt["reason"]:
        lines[0] += f": {attempt['reason']}"
    if attempt["next"]:
        lines.append(f"  then {attempt['next']}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_config(loaded: Loaded, console: Console, *, origin: bool, as_json: bool) -> None:
    """Print every value, with where it comes from if asked."""
    sections = redact_values(to_dict(loaded.config))
    values = {f"{s}.{key}": value for s, section in sections.items() for key, value in section.items()}
    if as_json:
        rows = {key: {"value": value, "origin": loaded.origins[key]} for key, value in values.items()}
        print_json(rows if origin else values)
        return
    width = max(map(len, values))
    for key, value in values.items():
        shown = f"{key:<{width}} = {value}"
        console.print(f"{shown:<{width + 30}}  # {loaded.origins[key]}" if origin else shown, markup=False)
