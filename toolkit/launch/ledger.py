"""What happened to a run so far: one line an attempt, and what its ranks said when they failed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import storage
from toolkit.rundir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One start of a job. Times are Unix seconds; `outcome` is RUNNING until it is known."""

    attempt: str
    job_id: str
    nodes: tuple[str, ...]
    layout: str
    start_time: float
    end_time: float | None = None
    first_step: int | None = None
    last_step: int | None = None
    outcome: str = "RUNNING"
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What a rank said of its own end."""

    rank: int
    node: str
    time: float
    is_echo: bool
    """It only lost the connection to another rank."""
    error: str


def read_attempts(run_dir: RunDir) -> list[Attempt]:
    """Read all attempts, oldest first."""
    if not run_dir.attempts_path.is_file():
        return []
    lines = run_dir.attempts_path.read_text(encoding="utf-8").splitlines()
    records = (json.loads(line) for line in lines if line.strip())
    return [Attempt(**{**record, "nodes": tuple(record["nodes"])}) for record in records]


def begin_attempt(run_dir: RunDir, attempt: Attempt) -> None:
    """Add an attempt; one that never told its end was killed."""
    closed = [
        replace(known, outcome="KILLED", reason="ended without a word") if known.outcome == "RUNNING" else known
        for known in read_attempts(run_dir)
        if known.attempt != attempt.attempt
    ]
    _write(run_dir.attempts_path, [*closed, attempt])


def end_attempt(run_dir: RunDir, attempt: Attempt) -> None:
    """Replace the line of an attempt by its final form."""
    others = [known for known in read_attempts(run_dir) if known.attempt != attempt.attempt]
    _write(run_dir.attempts_path, [*others, attempt])


def fail_attempt(run_dir: RunDir, attempt: str, *, reason: str, time: float) -> None:
    """Close the line of an attempt that broke off; one that had not begun has none."""
    for known in read_attempts(run_dir):
        if known.attempt == attempt:
            end_attempt(run_dir, replace(known, outcome="FAILED", reason=reason, end_time=time))


def _write(path: Path, attempts: Sequence[Attempt]) -> None:
    text = "".join(json.dumps(asdict(attempt)) + "\n" for attempt in attempts)
    storage.write_atomic(str(path), text.encode())


def write_failure(run_dir: RunDir, attempt: str, failure: Failure) -> None:
    """Leave a rank's last word."""
    path = run_dir.failure_path(attempt, rank=failure.rank)
    storage.write_atomic(str(path), json.dumps(asdict(failure)).encode())


def read_failures(run_dir: RunDir, attempt: str) -> list[Failure]:
    """Read the last words of an attempt, causes before echoes, then by time."""
    records: list[dict[str, Any]] = [
        json.loads(path.read_text(encoding="utf-8")) for path in run_dir.attempt_dir(attempt).glob("*.failure.json")
    ]
    failures = [Failure(**record) for record in records]
    return sorted(failures, key=lambda failure: (failure.is_echo, failure.time))
