"""What the reading verbs print."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from toolkit.cluster.base import JobStatus
from toolkit.config.load import Loaded, load_config
from toolkit.config.schema import to_dict
from toolkit.data.manifest import read_manifest
from toolkit.errors import RunError
from toolkit.launch.ledger import Attempt, read_attempts, read_failures
from toolkit.launch.submit import job_status
from toolkit.monitor import metrics
from toolkit.rundir import RunDir

_POLL_S = 0.5


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1))


def list_runs(root: Path) -> list[RunDir]:
    """List the runs of a directory by name."""
    if not root.is_dir():
        return []
    runs = (RunDir(entry.absolute()) for entry in sorted(root.iterdir()))
    return [run for run in runs if run.config_path.is_file()]


def read_metrics(run_dir: RunDir) -> list[dict[str, Any]]:
    """Read the numbers of all steps; a line that is being written is left out."""
    if not run_dir.metrics_path.is_file():
        return []
    lines = run_dir.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def describe(run_dir: RunDir) -> dict[str, Any]:
    """Gather what is known of a run as plain values."""
    cfg = load_config(run_dir.config_path).config
    status = job_status(run_dir)
    attempts = read_attempts(run_dir)
    steps = read_metrics(run_dir)
    validated = [step for step in steps if metrics.VALIDATION_LOSS in step]
    failures = read_failures(run_dir, attempts[-1].attempt) if attempts else _newest_failures(run_dir)
    return {
        "run": run_dir.name,
        "directory": str(run_dir.root),
        "job": None if status is None else _plain_status(status),
        "step": steps[-1]["step"] if steps else 0,
        "num_steps": cfg.num_steps,
        "first_loss": steps[0][metrics.LOSS] if steps else None,
        "last_loss": steps[-1][metrics.LOSS] if steps else None,
        "validation_loss": validated[-1][metrics.VALIDATION_LOSS] if validated else None,
        "unigram_loss": read_manifest(cfg.data.path).unigram_loss,
        "tokens_per_s": steps[-1].get(metrics.TOKENS_PER_S) if steps else None,
        "attempts": [_plain_attempt(attempt, status) for attempt in attempts],
        "failures": [asdict(failure) for failure in failures],
    }


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


def print_runs(root: Path, console: Console, *, as_json: bool) -> None:
    """List the runs, a line each."""
    runs = [describe(run) for run in list_runs(root)]
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
        job = run["job"] or {"job_id": "-", "state": "-"}
        losses = [_number(run[key]) for key in ("last_loss", "validation_loss")]
        table.add_row(run["run"], job["job_id"], job["state"], f"{run['step']}/{run['num_steps']}", *losses)
    console.print(table)


def print_run(run_dir: RunDir, console: Console, *, as_json: bool) -> None:
    """Show one run: job, progress, attempts, and what went wrong."""
    run = describe(run_dir)
    if as_json:
        print_json(run)
        return
    job = run["job"]
    if job is not None:
        why = f" ({job['reason']})" if job["reason"] else ""
        console.print(
            f"run {run['run']}: job {job['job_id']} {job['state']}{why}, step {run['step']}/{run['num_steps']}"
        )
    console.print(f"loss: first {_number(run['first_loss'])}, last {_number(run['last_loss'])}, "
                  f"validation {_number(run['validation_loss'])}; "
                  f"always guessing by unigram frequencies {_number(run['unigram_loss'])}")  # fmt: skip
    for attempt in run["attempts"]:
        steps = f"steps {attempt['first_step']}-{attempt['last_step']}" if attempt["last_step"] is not None else ""
        console.print(
            f"attempt {attempt['attempt']}: {attempt['outcome']} {steps} {attempt['reason']} [{attempt['layout']}]",
            markup=False,
        )
    _print_trouble(run_dir, run, console)
    console.print(f"directory {run['directory']}")


def _print_trouble(run_dir: RunDir, run: dict[str, Any], console: Console) -> None:
    job, failures = run["job"], run["failures"]
    if job is None or job["state"] in {"COMPLETED", "RUNNING", "PENDING", "REQUEUED", "CANCELLED"}:
        return
    if job["exit_note"]:
        console.print(f"ended by {job['exit_note']}", markup=False)
    attempt = f"{job['job_id']}.{job['restarts']}"
    causes = [failure for failure in failures if not failure["is_echo"]]
    for failure in causes[:3]:
        console.print(f"rank {failure['rank']} on {failure['node']}: {failure['error']}", markup=False)
    rank = causes[0]["rank"] if causes else _rank_of(job["exit_note"])
    path = run_dir.rank_log_path(attempt, rank=rank)
    if path.is_file():
        tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        console.print(f"last lines of {path}:", markup=False)
        console.print("\n".join(f"  {line}" for line in tail), markup=False)


def _rank_of(exit_note: str) -> int:
    words = exit_note.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_config(loaded: Loaded, console: Console, *, origin: bool, as_json: bool) -> None:
    """Print every value, with where it comes from if asked."""
    values = {f"{s}.{key}": value for s, section in to_dict(loaded.config).items() for key, value in section.items()}
    if as_json:
        rows = {key: {"value": value, "origin": loaded.origins[key]} for key, value in values.items()}
        print_json(rows if origin else values)
        return
    width = max(map(len, values))
    for key, value in values.items():
        shown = f"{key:<{width}} = {value}"
        console.print(f"{shown:<{width + 30}}  # {loaded.origins[key]}" if origin else shown, markup=False)


def print_log(run_dir: RunDir, *, rank: int, follow: bool) -> None:
    """Print a rank's log of the newest attempt; following, of each attempt until the job ends."""
    shown: dict[Path, int] = {}
    while True:
        live = follow and (status := job_status(run_dir)) is not None and status.state.is_live
        path = _newest_log(run_dir, rank=rank)
        if path is None and not live:
            raise RunError(
                f"run {run_dir.name} has no log of rank {rank}\n  its job has not started, or has fewer ranks"
            )
        if path is not None:
            with path.open("rb") as file:
                file.seek(shown.get(path, 0))
                data = file.read()
                shown[path] = file.tell()
            print(data.decode("utf-8", "replace"), end="", flush=True)
        if not live:
            return
        time.sleep(_POLL_S)


def _newest_log(run_dir: RunDir, *, rank: int) -> Path | None:
    logs = sorted(run_dir.logs_dir.glob(f"*/{rank}.out"), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else None


def follow(run_dir: RunDir, console: Console) -> None:
    """Show a live line until the job ends; Ctrl-C leaves the job running."""
    num_steps = load_config(run_dir.config_path).config.num_steps
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}"),
    ]
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("PENDING", total=num_steps, numbers="")
            for status in _poll(run_dir):
                steps = read_metrics(run_dir)
                values = steps[-1] if steps else {"step": 0}
                progress.update(
                    task,
                    completed=values["step"],
                    description=status.state.value,
                    numbers=_numbers(values, num_steps),
                )
    except KeyboardInterrupt:
        name = run_dir.name
        console.print(
            f"the job goes on; stop it: python -m toolkit cancel {name}, look: python -m toolkit status {name}"
        )
        return
    print_run(run_dir, console, as_json=False)
    last = job_status(run_dir)
    if last is None or last.state.value != "COMPLETED":
        raise RunError(f"run {run_dir.name} did not finish: {last.state.value if last else 'no job'}")


def _numbers(values: dict[str, Any], num_steps: int) -> str:
    if metrics.LOSS not in values:
        return "starting"
    parts = [f"{values['step']}/{num_steps}", f"loss {values[metrics.LOSS]:.3f}"]
    if metrics.TOKENS_PER_S in values:
        parts.append(f"{metrics.short(values[metrics.TOKENS_PER_S])} tok/s")
        left_s = (num_steps - values["step"]) * values[metrics.STEP_S]
        parts.append(f"eta {metrics.duration(left_s)}")
    return " | ".join(parts)


def _poll(run_dir: RunDir) -> Iterator[JobStatus]:
    while (status := job_status(run_dir)) is not None:
        yield status
        if not status.state.is_live:
            return
        time.sleep(_POLL_S)
