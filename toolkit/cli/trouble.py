"""What is said of a run that went wrong: by its ranks, by Slurm, and where all of it stands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from toolkit.cluster.base import NEVER_STARTS, JobState
from toolkit.cluster.batchlog import find_complaints, newest_attempt
from toolkit.rundir import RunDir

_SHOWN_LINES = 8
_SHOWN_COMPLAINTS = 4
# no word of what went wrong is wanted there, though an attempt may have been killed
_CALM_STATES = {state.value for state in JobState if state.is_live} | {"COMPLETED", "CANCELLED"}
_CALM_OUTCOMES = {"FINISHED", "STOPPED"}


def print_trouble(run_dir: RunDir, run: Mapping[str, Any], console: Console) -> None:
    """Print what went wrong with a run's newest job, as `describe` has gathered it."""
    job, rehearsal = run["job"], run["rehearsal"]
    if rehearsal is not None:
        console.print(rehearsal["said"], markup=False)
    is_first = rehearsal is None or rehearsal["reason"] == NEVER_STARTS
    if job is not None and job["reason"] == NEVER_STARTS and run["prepared_in"] and is_first:
        console.print(f"its data could not be made; see {run['prepared_in']}/logs, then submit again", markup=False)
    if job is None or job["state"] in _CALM_STATES or run["state"] in _CALM_OUTCOMES or _was_stopped(run):
        return
    note = job["exit_note"]
    if note:
        console.print(f"ended by {note}" if note.startswith("rank") else f"its end: {note}", markup=False)
    causes = [failure for failure in run["failures"] if not failure["is_echo"]]
    for failure in causes[:3]:
        console.print(f"rank {failure['rank']} on {failure['node']}: {failure['error']}", markup=False)
    batch_log = find_batch_log(run_dir, job)
    complaints = find_complaints(newest_attempt(read_text(batch_log)))[:_SHOWN_COMPLAINTS]
    if complaints:
        console.print(f"Slurm says in {batch_log}:\n{_indent(complaints)}", markup=False)
    rank_log = run_dir.rank_log_path(_attempt_of(run), rank=causes[0]["rank"] if causes else _rank_of(note))
    shown = rank_log if rank_log.is_file() else batch_log
    if shown.is_file() and not (shown == batch_log and complaints):
        console.print(f"last lines of {shown}:\n{_indent(last_lines(shown))}", markup=False)


def find_batch_log(run_dir: RunDir, job: Mapping[str, Any]) -> Path:
    """Say where the batch log of a job is: as Slurm tells, else where a job that was submitted here has it."""
    return Path(job["batch_log"] or run_dir.batch_log_path(job["job_id"]))


def last_lines(path: Path) -> Sequence[str]:
    """Read the end of a log."""
    return read_text(path).rstrip().split("\n")[-_SHOWN_LINES:]


def read_text(path: Path) -> str:
    """Read a log, which may be of any encoding; empty where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _was_stopped(run: Mapping[str, Any]) -> bool:
    return bool(run["attempts"]) and run["attempts"][-1]["next"] == "nothing: it was stopped"


def _attempt_of(run: Mapping[str, Any]) -> str:
    """Name the newest attempt of a run's job, which a scheduler that has forgotten it cannot count."""
    job, attempts = run["job"], run["attempts"]
    is_newest = bool(attempts) and attempts[-1]["job_id"] == job["job_id"]
    return str(attempts[-1]["attempt"]) if is_newest else f"{job['job_id']}.{job['restarts']}"


def _rank_of(exit_note: str) -> int:
    words = exit_note.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _indent(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
