"""What Slurm's commands say of jobs, read. Pure, but for the log that tells how a job ended.

Source: Slurm 22.05, scontrol(1), sinfo(1), squeue(1).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import zip_longest
from pathlib import Path

from toolkit.cluster.base import JobState, JobStatus
from toolkit.cluster.batchlog import find_exit_note, newest_attempt
from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.marks import find_mark

# Slurm's rarer states, as what they mean to a run.
# Source: Slurm 22.05, squeue(1), JOB STATE CODES.
_RARE_STATES = {
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.COMPLETING,
    "STOPPED": JobState.RUNNING,
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
    ("PreemptTime", 24),
)
_CELL_END = "\x1f"  # stands in no path and no comment
OWN_COLUMNS = ",".join(f"{name}:{width}{_CELL_END}" for name, width in _OWN)
"""Asked of squeue -O; of the log it gives the pattern, with %j."""

_WORST_FIRST = (
    JobState.RUNNING,
    JobState.SUSPENDED,
    JobState.CONFIGURING,
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


# Values that a user chooses may hold blanks and `=`: each ends where another known field begins.
# Source: Slurm 22.05, src/api/job_info.c; recorded answers of 24.11 and 26.05.
_TEXTS = "JobName|Command|SubmitLine|WorkDir|AdminComment|SystemComment|Comment|Extra|StdErr|StdIn|StdOut"
_KEYS = (
    f"{_TEXTS}|JobId|ArrayJobId|ArrayTaskId|HetJobId|UserId|GroupId|MCS_label|Priority|Nice|Account|QOS|WCKey|JobState"
    "|Reason|Dependency|Requeue|Restarts|BatchFlag|Reboot|ExitCode|RunTime|TimeLimit|TimeMin|SubmitTime|EligibleTime"
    "|AccrueTime|StartTime|EndTime|Deadline|PreemptEligibleTime|PreemptTime|SuspendTime|SecsPreSuspend|LastSchedEval"
    "|Scheduler|Partition|AllocNode:Sid|ReqNodeList|ExcNodeList|NodeList|SchedNodeList|BatchHost|NumNodes|NumCPUs"
    "|NumTasks|CPUs/Task|ReqB:S:C:T|TRES|ReqTRES|AllocTRES|Features|Reservation|Licenses|Network|BurstBuffer|Container"
    "|ContainerID|SELinuxContext|Switches|Power|CpusPerTres|MemPerTres|TresBind|TresFreq|TresPerJob|TresPerNode"
    "|TresPerSocket|TresPerTask|MailUser|MailType"
)
_FIELD = re.compile(rf"(?:^| )(?:({_TEXTS})=(.*?)(?= +(?:{_KEYS})=|$)|([\w:/]+)=(\S*))")


def parse_fields(line: str) -> dict[str, str]:
    """Read the `key=value` pairs of a job; of a key that stands in a value, too, the first one counts."""
    fields: dict[str, str] = {}
    for text_key, text, key, value in _FIELD.findall(line.rstrip()):
        fields.setdefault(text_key or key, text or value)
    return fields


def parse_jobs(text: str, *, exit_note: Callable[[Path], str]) -> JobStatus:
    """Read the lines of `scontrol show job -o`: one for a job, several for an array."""
    lines = [line for line in text.split("\n") if line.strip()]
    tasks = [parse_job(line, exit_note=exit_note) for line in lines]
    worst = min(tasks, key=lambda task: _WORST_FIRST.index(task.state))
    array_id = parse_fields(lines[0]).get("ArrayJobId")
    if array_id is None:
        return worst
    nodes = tuple(dict.fromkeys(node for task in tasks for node in task.nodes))
    return replace(worst, job_id=array_id, nodes=nodes)


def parse_job(text: str, *, exit_note: Callable[[Path], str]) -> JobStatus:
    """Read one line of `scontrol show job -o`."""
    fields = parse_fields(text)
    state = parse_state(fields.get("JobState", ""))
    restarts = int(fields.get("Restarts") or 0)
    if state is JobState.PENDING and restarts:
        state = JobState.REQUEUED
    batch_log = find_batch_log(fields.get("StdOut", ""), work_dir=fields.get("WorkDir", ""))
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
        preempt_time=_timestamp(fields.get("PreemptTime")),
        exit_note=exit_note(Path(batch_log)) if ended else "",
        batch_log=batch_log,
        can_requeue=fields.get("Requeue") != "0",
        exclude=tuple(expand_nodes(fields.get("ExcNodeList", ""))),
        time_limit_s=parse_time(fields.get("TimeLimit", "")),
        mark=find_mark(fields.get("Comment", "")),
        script=fields.get("Command", ""),
    )


def find_batch_log(told: str, *, work_dir: str) -> str:
    """Say where the batch log of a job is, by what Slurm tells of it.

    A `%` in the name of a folder, which sbatch was given as `%%`, is told as if it stood for something. The folder that
    a job started in is told as it is, so the folders above both are taken from there.

    Source: measured on Slurm 22.05, scontrol.
    """
    if "%" not in told + work_dir:
        return told
    pairs = zip_longest(Path(told).parts, Path(work_dir).parts, fillvalue="")
    return str(Path(*(right if "%" in right else part for part, right in pairs if part)))


def _expand_log(pattern: str, *, job_id: str) -> str:
    """Do what Slurm does with the pattern of a log's name, which squeue tells as it was given."""
    told = {"%%": "%", "%j": job_id, "%A": job_id}
    return re.sub("%[%jA]", lambda found: told[found[0]], pattern)


def parse_own_jobs(text: str, *, exit_note: Callable[[Path], str]) -> list[JobStatus]:
    """Read what squeue says of a user's jobs (OWN_COLUMNS); the tasks of an array are one job."""
    tasks: dict[str, list[JobStatus]] = {}
    for line in text.split("\n"):
        cells = [cell.strip() for cell in line.split(_CELL_END)]
        if len(cells) >= len(_OWN):
            status = _read_own(cells, exit_note)
            tasks.setdefault(status.job_id, []).append(status)
    return [min(several, key=lambda task: _WORST_FIRST.index(task.state)) for several in tasks.values()]


def _read_own(cells: Sequence[str], exit_note: Callable[[Path], str]) -> JobStatus:
    job_id, state, reason, restarts, submitted, start, end, limit, nodes, comment, command = cells[:11]
    batch_log, preempted = _expand_log(cells[11], job_id=job_id), cells[12]
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
        preempt_time=_timestamp(preempted),
        exit_note=exit_note(Path(batch_log)) if can_have_note else "",
        batch_log=batch_log,
        time_limit_s=parse_time(limit),
        mark=mark,
        script=command,
    )


def read_exit_note(batch_log: Path) -> str:
    """Say how the newest attempt of a job ended: see `JobStatus.exit_note`; nothing where there is no log."""
    if not batch_log.is_file():
        return ""
    return find_exit_note(newest_attempt(batch_log.read_text(encoding="utf-8", errors="replace")))


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
