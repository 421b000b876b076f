"""What emulated nodes keep of a job: spec.json (what was asked for) and state.json (how far it is)."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from toolkit import records, storage
from toolkit.cluster.base import JobState
from toolkit.errors import RecordError

START_S = 20.0
"""How long a controller may take to say that it has started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _SpecFields:
    """What is needed of a job's spec.json."""

    requeue: bool
    exclude: list[str]
    time_limit_s: float | None
    nodes: int
    array: list[int]
    gpus_per_node: int | None
    mark: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _StateFields:
    """What may stand in a job's state.json."""

    state: JobState
    submit_time: float
    reason: str = ""
    nodes: list[str] = field(default_factory=list)
    restarts: int = 0
    start_time: float | None = None
    end_time: float | None = None
    exit_note: str = ""
    time_limit_s: float | None = None
    pid: int | None = None
    pid_time: float | None = None


def read_spec(job_dir: Path) -> dict[str, Any] | None:
    """Read what was asked for; None: there is no such job, or its file is damaged."""
    return _read_as(job_dir / "spec.json", _SpecFields)


def read_state(job_dir: Path) -> dict[str, Any] | None:
    """Read a job's state file; None: there is none, or it is damaged."""
    return _read_as(job_dir / "state.json", _StateFields)


def _read_as(path: Path, schema: type[Any]) -> dict[str, Any] | None:
    try:
        if records.read_record(path, schema) is None:
            return None
        return records.read_record(path, dict[str, Any])
    except RecordError as error:
        records.say_once(f"{error}\n  nothing is known of that job")
        return None


def write_state(job_dir: Path, fields: Mapping[str, Any]) -> None:
    """Replace a job's state file."""
    plain = {key: value.value if isinstance(value, JobState) else value for key, value in fields.items()}
    storage.write_atomic(str(job_dir / "state.json"), (json.dumps(plain, indent=1) + "\n").encode())


def is_running(known: Mapping[str, Any]) -> bool:
    """Whether the controller of a job is alive."""
    if not known.get("pid"):  # just submitted
        return bool(time.time() - known["submit_time"] < START_S)
    try:
        process = psutil.Process(known["pid"])
        same = abs(process.create_time() - known["pid_time"]) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
