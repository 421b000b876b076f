"""What happened to a run so far: one line an attempt, and what its ranks said when they failed."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from toolkit import records, storage
from toolkit.errors import RecordError
from toolkit.lock import hold_briefly
from toolkit.modes import private_files
from toolkit.redact import redact
from toolkit.rundir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One start of a job. Times are Unix seconds.

    `outcome` is RUNNING until it is known, then what the loop says (FINISHED, REQUEUE, STOPPED, FAILED), PREEMPTED or
    NODE_FAIL where the scheduler broke it off, CRASHED where a rank ended with an error, KILLED where none said why.
    """

    attempt: str
    job_id: str
    nodes: tuple[str, ...]
    layout: str
    start_time: float
    """When the processes of its ranks began."""
    end_time: float | None = None
    first_step: int | None = None
    """Steps done in the checkpoint it began with."""
    last_step: int | None = None
    saved_step: int | None = None
    """Steps done in the newest whole checkpoint when it ended."""
    redone: int = 0
    """Steps that a former attempt had done and lost."""
    outcome: str = "RUNNING"
    reason: str = ""
    culprits: tuple[str, ...] = ()
    """Nodes that ended it."""
    cause: str = ""
    """What the culprits did: `crash`, `hang`, or `probe` where they failed a check of their health."""
    next: str = ""
    """What came after it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long its parts took: connect, health, build, load, first_step (from the start, one after the other), save
    (the longest until a checkpoint was complete), stall (the longest that training stood still for one)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What a rank said of its own end."""

    rank: int
    node: str
    time: float
    is_echo: bool
    """It only lost the connection to another rank."""
    error: str
    is_lasting: bool = False
    """The same job would fail again: what is wrong is in the configuration, data or checkpoints."""
    culprits: tuple[str, ...] = ()
    """Nodes that this rank holds to be the cause; empty: its own."""
    cause: str = "crash"
    """See `Attempt.cause`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """The newest job of a run: written before it is handed in, when it was taken, and by the job when it starts."""

    scheduler: str
    """`slurm` or `local`."""
    job_id: str
    """Empty: it was handed in, and whether it was taken is not known."""
    attempts_before: int
    """Attempts of the run when it was submitted: its budget of restarts counts from there."""
    mark: str = ""
    """What its comment holds; empty: it was handed in by hand."""
    cluster: str = ""
    """Name of the cluster: numbers of jobs mean nothing without it; empty where it is not known."""
    submit_time: float | None = None
    """As the scheduler told the job when it started, in Unix seconds."""
    prepared_in: str | None = None
    """Where the jobs that make its dataset have their scripts and logs; None: there were none."""
    rehearsed_in: str | None = None
    """Run directory of the rehearsal that it waits for; None: it waits for none."""


def find_job_record(run_dir: RunDir) -> JobRecord | None:
    """Find the newest job of a run; None: none was submitted. Of a damaged record nothing is known but that it was."""
    try:
        return records.read_record(run_dir.job_path, JobRecord)
    except RecordError as error:
        # By its mark a job of the run is found all the same; where there is none, the next submit writes it anew.
        records.say_once(f"{error}\n  the scheduler is asked for the job of the run")
        return JobRecord(scheduler="auto", job_id="", attempts_before=0)


@private_files()
def write_job_record(run_dir: RunDir, job: JobRecord) -> None:
    """Record the newest job of a run."""
    storage.write_atomic(str(run_dir.job_path), (json.dumps(asdict(job)) + "\n").encode())


def read_attempts(run_dir: RunDir) -> list[Attempt]:
    """Read all attempts, oldest first.

    Raises:
        RecordError: the file cannot be read.
    """
    return records.read_lines(run_dir.attempts_path, Attempt)


def has_ended(run_dir: RunDir, job_id: str) -> bool:
    """Whether the run itself tells that its job has ended: then nobody need be asked."""
    last = next((one for one in reversed(read_attempts(run_dir)) if one.job_id == job_id), None)
    return last is not None and last.next.startswith("nothing")


def begin_attempt(run_dir: RunDir, attempt: Attempt) -> None:
    """Add an attempt; one that never told its end was killed."""

    def begin(known: Attempt) -> Attempt:
        return replace(known, outcome="KILLED", reason="ended without a word") if known.outcome == "RUNNING" else known

    _change(run_dir, lambda known: [*(begin(one) for one in known if one.attempt != attempt.attempt), attempt])


def change_attempt(run_dir: RunDir, attempt: str, **fields: Any) -> None:
    """Change fields of an attempt's line; one that had not begun has none, and nothing is changed."""
    _change(run_dir, lambda known: [replace(one, **fields) if one.attempt == attempt else one for one in known])


def _change(run_dir: RunDir, change: Callable[[list[Attempt]], list[Attempt]]) -> None:
    """Change the attempts under a lock: one that is given up may tell its end while the next one begins."""
    with hold_briefly(run_dir.attempts_lock_path):
        known, damaged = records.sort_lines(run_dir.attempts_path, Attempt)
        if damaged:  # what they say may be wanted by a person
            with open(f"{run_dir.attempts_path}.damaged", "ab") as file:
                file.writelines(line + b"\n" for line in damaged)
        text = "".join(json.dumps(asdict(one)) + "\n" for one in change(known))
        storage.write_atomic(str(run_dir.attempts_path), text.encode())


def read_refusals(run_dir: RunDir) -> dict[str, str]:
    """Read which attempts were turned away since the newest one began, oldest first, and why."""
    attempts = read_attempts(run_dir)
    since = attempts[-1].start_time if attempts else 0.0
    paths = [path for path in run_dir.logs_dir.glob("*/refused") if path.stat().st_mtime > since]
    ordered = sorted(paths, key=lambda path: path.stat().st_mtime)
    return {path.parent.name: (records.read_text(path) or "").strip() for path in ordered}


def write_failure(run_dir: RunDir, attempt: str, failure: Failure) -> None:
    """Leave a rank's last word."""
    path = run_dir.failure_path(attempt, rank=failure.rank)
    told = replace(failure, error=redact(failure.error))
    storage.write_atomic(str(path), json.dumps(asdict(told)).encode())


def read_failures(run_dir: RunDir, attempt: str) -> list[Failure]:
    """Read the last words of an attempt, causes before echoes, then by time."""
    failures = []
    for path in run_dir.attempt_dir(attempt).glob("*.failure.json"):
        try:
            failure = records.read_record(path, Failure)
        except RecordError as error:
            records.say_once(f"left out: {error}")
        else:
            failures += [] if failure is None else [failure]
    return sorted(failures, key=lambda failure: (failure.is_echo, failure.time))
