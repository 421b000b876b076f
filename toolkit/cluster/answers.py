"""What Slurm's commands say of jobs, read. Pure, but for the log that names a failed task.

Source: Slurm 22.05, scontrol(1), sinfo(1), squeue(1).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from toolkit.cluster.base import JobState, JobStatus
from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.marks import find_mark

# Slurm's rarer states, as what they mean to a run.
# Source: Slurm 22.05, squeue(1), JOB STATE CODES.
_RARE_STATES = {
    "CONFIGURING": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.COMPLETING,
    "STOPPED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "DEADLINE": JobState.TIMEOUT,
    "REVOKED": JobState.CANCELLED,
}
_STATES = {**{state.value: state for state in JobState}, **_RARE_STATES}


def parse_state(word: str) -> JobState:
    """Read a state; a word that is not known is UNKNOWN."""
    return _STATES.get(word, JobState.UNKNOWN)


_OWN = (
    *(("ArrayJobID", 20), ("State", 24), ("Reason", 80), ("RestartCnt", 12), ("SubmitTime", 24), ("StartTime", 24)),
    *(("EndTime", 24), ("TimeLimit", 20), ("NodeList", 1024), ("Comment", 512), ("Command", 1024), ("STDOUT", 1024)),
)
_CELL_END = "\x1f"  # stands in no path and no comment
OWN_COLUMNS = ",".join(f"{name}:{width}{_CELL_END}" for name, width in _OWN)
"""Asked of squeue -O; of the log it gives the pattern, with %j."""

_WORST_FIRST = (
    JobState.RUNNING,
    JobState.COMPLETING,
    JobState.PENDING,
    JobState.REQUEUED,
    JobState.FAILED,
    JobState.OUT_OF_MEMORY,
    JobState.NODE_FAIL,
    JobState.TIMEOUT,
    JobState.CANCELLED,
    JobState.PREEMPTED,
    JobState.UNKNOWN,
    JobState.COMPLETED,
)
"""Which task speaks for an array: it is live while one of them is, and COMPLETED when all are."""


def parse_jobs(text: str, *, exit_note: Callable[[Path], str]) -> JobStatus:
    """Read the lines of `scontrol show job -o`: one for a job, several for an array."""
    tasks = [parse_job(line, exit_note=exit_note) for line in text.splitlines() if line.strip()]
    worst = min(tasks, key=lambda task: _WORST_FIRST.index(task.state))
    array_id = re.search(r"ArrayJobId=(\d+)", text)
    if array_id is None:
        return worst
    nodes = tuple(dict.fromkeys(node for task in tasks for node in task.nodes))
    return replace(worst, job_id=array_id[1], nodes=nodes)


def parse_job(text: str, *, exit_note: Callable[[Path], str]) -> JobStatus:
    """Read one line of `scontrol show job -o`."""
    fields = _read_fields(text)
    state = parse_state(fields.get("JobState", ""))
    restarts = int(fields.get("Restarts") or 0)
    if state is JobState.PENDING and restarts:
        state = JobState.REQUEUED
    # an epilogue asks while its job still counts as running
    ended = state not in {JobState.PENDING, JobState.REQUEUED, JobState.COMPLETED}
    return JobStatus(
        job_id=fields.get("JobId", ""),
        state=state,
        reason="" if fields.get("Reason") in (None, "None") else fields["Reason"],
        nodes=tuple(expand_nodes(fields.get("NodeList", ""))),
        restarts=restarts,
        submit_time=_timestamp(fields.get("SubmitTime")),
        start_time=_timestamp(fields.get("StartTime")),
        end_time=_timestamp(fields.get("EndTime")),
        exit_note=exit_note(Path(fields.get("StdOut", ""))) if ended else "",
        can_requeue=fields.get("Requeue") != "0",
        exclude=tuple(expand_nodes(fields.get("ExcNodeList", ""))),
        time_limit_s=parse_time(fields.get("TimeLimit", "")),
        mark=find_mark(fields.get("Comment", "")),
        script=fields.get("Command", ""),
    )


def _read_fields(line: str) -> dict[str, str]:
    """Split `JobId=7 ... Command=a b.sh SubmitLine=sbatch a b.sh EndTime=now WorkDir=...` into fields.

    A value reaches to the next field, and a field counts where it stands first: words of a user come later.
    """
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|\s)([A-Z][\w:/]*)=(.*?)(?=\s+[A-Z][\w:/]*=|\s*$)", line):
        fields.setdefault(name, value)
    return fields


def parse_own_jobs(text: str, *, exit_note: Callable[[Path], str]) -> list[JobStatus]:
    """Read what squeue says of a user's jobs (OWN_COLUMNS); the tasks of an array are one job."""
    tasks: dict[str, list[JobStatus]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(_CELL_END)]
        if len(cells) >= len(_OWN):
            status = _read_own(cells, exit_note)
            tasks.setdefault(status.job_id, []).append(status)
    return [min(several, key=lambda task: _WORST_FIRST.index(task.state)) for several in tasks.values()]


def _read_own(cells: Sequence[str], exit_note: Callable[[Path], str]) -> JobStatus:
    job_id, state, reason, restarts, submitted, start, end, limit, nodes, comment, command, log = cells[: len(_OWN)]
    parsed, mark = parse_state(state), find_mark(comment)
    if parsed is JobState.PENDING and restarts not in {"", "0"}:
        parsed = JobState.REQUEUED
    can_have_note = bool(mark) and not parsed.is_live and parsed is not JobState.COMPLETED
    return JobStatus(
        job_id=job_id,
        state=parsed,
        reason="" if reason == "None" else reason,
        nodes=tuple(expand_nodes(nodes)),
        restarts=int(restarts or 0),
        submit_time=_timestamp(submitted),
        start_time=_timestamp(start),
        end_time=_timestamp(end),
        exit_note=exit_note(Path(log.replace("%j", job_id))) if can_have_note else "",
        time_limit_s=parse_time(limit),
        mark=mark,
        script=command,
    )


def read_exit_note(batch_log: Path) -> str:
    """Find the first task of the newest attempt that srun saw end badly: `rank 3 on node2: Killed`."""
    if not batch_log.is_file():
        return ""
    pattern = re.compile(r"srun: error: (\S+): tasks? (\d+)\S*: (.+)")
    text = batch_log.read_text(encoding="utf-8", errors="replace")
    matches = pattern.findall(re.split(r"^attempt \S+$", text, flags=re.MULTILINE)[-1])
    return f"rank {matches[0][1]} on {matches[0][0]}: {matches[0][2]}" if matches else ""


def is_usable(state: str) -> bool:
    """Tell whether jobs may be placed on a node in this state; `*` marks one that does not answer."""
    return re.match(r"(down|drain|fail|unk|maint|inval|error)|.*\*$", state) is None


def parse_time(text: str) -> int | None:
    """Read Slurm's `2-00:00:00`, `30:00`; None: no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _timestamp(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:  # Unknown, N/A
        return None
