"""Slurm: the job script by submitit's renderer, the verbs by Slurm's own commands.

submitit's executor would pickle the function and refuses to exist without srun, so a dry run on a laptop
could not show the script; its renderer is pure. It leaves out --requeue, --kill-on-bad-exit, the CPUs of
srun and --chdir. States are read from scontrol: without accounting sacct, which submitit asks, knows none.

Source: submitit 1.5.4, slurm/slurm.py; Slurm 22.05.
"""

import logging
import random
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from toolkit import storage
from toolkit.cluster.base import JobSpec, JobState, JobStatus, PartitionLimits
from toolkit.errors import ClusterError

log = logging.getLogger(__name__)

_TRIES = 4
_TIMEOUT_S = 60
_RANK_LOG = "@RANK_LOG@"
_PASSING = ("Unable to contact", "Socket timed out", "Connection refused", "Resource temporarily unavailable")


class SlurmCluster:
    """The cluster this machine belongs to."""

    name = "slurm"

    def render(self, spec: JobSpec) -> str:
        """Write the batch script."""
        # deferred: costs 0.13 s, and most verbs do without
        from submitit.slurm.slurm import _make_sbatch_string  # noqa: PLC0415

        text: str = _make_sbatch_string(
            command=spec.command_line,
            folder=spec.log_dir,
            job_name=spec.name,
            partition=spec.partition,
            time=_minutes(spec.time_limit_s),
            nodes=spec.nodes,
            ntasks_per_node=spec.tasks_per_node,
            cpus_per_task=spec.cpus_per_task,
            qos=spec.qos,
            account=spec.account,
            constraint=spec.constraint,
            exclude=",".join(spec.exclude) or None,
            dependency=spec.dependency,
            mem=spec.mem_per_node,
            signal_delay_s=spec.signal_delay_s,
            wckey=None,
            stderr_to_stdout=True,
            setup=_setup(spec),
            additional_parameters=_parameters(spec),
            srun_args=["--kill-on-bad-exit=1", "--wait=60", "--output", _RANK_LOG, *spec.srun_extra],
        )
        # srun's file names know the job's id but not how often it was requeued; submitit quotes variables.
        return text.replace(_RANK_LOG, f'{shlex.quote(str(spec.log_dir))}/"$TOOLKIT_ATTEMPT"/%t.out')

    def submit(self, spec: JobSpec, *, script_path: Path) -> str:
        """Hand the script to sbatch."""
        storage.write_atomic(str(script_path), self.render(spec).encode())
        answer = self._call(["sbatch", "--parsable", str(script_path)], act=f"submit {spec.name}")
        return answer.strip().split(";")[0]

    def check(self, spec: JobSpec) -> str:
        """Let Slurm judge the script without submitting it; its estimate of the start names the job's future id."""
        act = f"take {spec.name}"
        said = self._call(["sbatch", "--test-only"], act=act, script=self.render(spec), keep_stderr=True)
        return re.sub(r"^sbatch: Job \d+ to start", "would start", said.strip())

    def state(self, job_id: str) -> JobStatus:
        """Read a job from the controller, else from accounting where there is one."""
        try:
            text = self._call(["scontrol", "show", "job", "-o", job_id], act=f"look at job {job_id}")
        except ClusterError as error:
            if "Invalid job id" not in str(error):
                raise
            return self._state_by_accounting(job_id)
        return parse_jobs(text, exit_note=read_exit_note)

    def cancel(self, job_id: str) -> None:
        """End a job."""
        self._call(["scancel", job_id], act=f"cancel job {job_id}")

    def requeue(self, job_id: str) -> None:
        """Put a running job back into the queue."""
        self._call(["scontrol", "requeue", job_id], act=f"requeue job {job_id}")

    def deadline(self, job_id: str) -> float | None:
        """Tell when the time limit ends a running job; follows `scontrol update TimeLimit`."""
        status = self.state(job_id)
        return status.end_time if status.state is JobState.RUNNING else None

    def limits(self) -> list[PartitionLimits]:
        """Read the partitions, the default one first."""
        text = self._call(["sinfo", "-h", "-N", "-o", "%P|%N|%T|%G|%c|%m|%l|%L"], act="read the partitions")
        return parse_partitions(text)

    def _state_by_accounting(self, job_id: str) -> JobStatus:
        command = ["sacct", "-n", "-X", "-P", "-j", job_id, "-o", "State,End"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
        words = done.stdout.split("|")[0].split() if done.returncode == 0 else []
        return JobStatus(job_id=job_id, state=parse_state(words[0] if words else ""))

    def _call(self, command: Sequence[str], *, act: str, script: str | None = None, keep_stderr: bool = False) -> str:
        """Run a command of Slurm; try again while the controller does not answer."""
        for attempt in range(_TRIES):
            try:
                done = subprocess.run(
                    command, input=script, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
                )
            except FileNotFoundError:
                raise ClusterError(f"cannot {act}: there is no {command[0]} here\n  use a login node") from None
            if done.returncode == 0:
                return done.stderr if keep_stderr else done.stdout
            if not any(mark in done.stderr for mark in _PASSING) or attempt == _TRIES - 1:
                break
            log.warning("%s: %s; trying again", act, done.stderr.strip())
            time.sleep((2**attempt) * random.uniform(0.5, 1.0))
        words = [line.split("error: ", 1)[-1].strip() for line in done.stderr.splitlines() if line.strip()]
        raise ClusterError(
            f"Slurm refused to {act}: {'; '.join(words) or 'no reason given'}\n  `sinfo` shows what there is"
        )


def _parameters(spec: JobSpec) -> dict[str, object]:
    parameters: dict[str, object] = {
        "chdir": spec.work_dir,
        "requeue" if spec.requeue else "no-requeue": True,
        "output": f"{spec.log_dir}/{'%A_%a' if spec.array else '%j'}.batch.out",
    }
    if spec.array:
        parameters["array"] = ",".join(map(str, spec.array))
    if spec.dependency:
        parameters["kill-on-invalid-dep"] = "yes"
    if spec.gpus_per_node:
        kind = f"{spec.gpu_type}:" if spec.gpu_type else ""
        parameters["gpus-per-node"] = f"{kind}{spec.gpus_per_node}"
    return {**parameters, **spec.sbatch_extra}


def _setup(spec: JobSpec) -> list[str]:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in spec.env.items()]
    logs = f'mkdir -p {shlex.quote(str(spec.log_dir))}/"$TOOLKIT_ATTEMPT"'
    # -u comes after the site's lines: the scripts behind `module` read variables that are not set
    return ["set -eo pipefail", *exports, *spec.setup, "set -u", "source sbatch/env.sh", logs]


def _minutes(seconds: int | None) -> int | None:
    return None if seconds is None else max(1, -(-seconds // 60))


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


def parse_state(word: str) -> JobState:
    """Read a state; a word that is not known is UNKNOWN."""
    return _RARE_STATES.get(word) or {state.value: state for state in JobState}.get(word, JobState.UNKNOWN)


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
    fields = dict(re.findall(r"(\w+)=(\S*)", text))
    state = parse_state(fields.get("JobState", ""))
    restarts = int(fields.get("Restarts") or 0)
    if state is JobState.PENDING and restarts:
        state = JobState.REQUEUED
    failed = state in {JobState.FAILED, JobState.NODE_FAIL, JobState.OUT_OF_MEMORY}
    return JobStatus(
        job_id=fields.get("JobId", ""),
        state=state,
        reason="" if fields.get("Reason") in (None, "None") else fields["Reason"],
        nodes=tuple(expand_nodes(fields.get("NodeList", ""))),
        restarts=restarts,
        submit_time=_timestamp(fields.get("SubmitTime")),
        start_time=_timestamp(fields.get("StartTime")),
        end_time=_timestamp(fields.get("EndTime")),
        exit_note=exit_note(Path(fields.get("StdOut", ""))) if failed else "",
    )


def read_exit_note(batch_log: Path) -> str:
    """Find the first task that srun saw end badly: `rank 3 on node2: Killed`."""
    if not batch_log.is_file():
        return ""
    pattern = re.compile(r"srun: error: (\S+): tasks? (\d+)\S*: (.+)")
    matches = pattern.findall(batch_log.read_text(encoding="utf-8", errors="replace"))
    return f"rank {matches[0][1]} on {matches[0][0]}: {matches[0][2]}" if matches else ""


def expand_nodes(text: str) -> list[str]:
    """Expand Slurm's short form: `node[1-2,5],head` -> node1, node2, node5, head."""
    if text in ("", "(null)"):
        return []
    nodes = []
    for name, inside in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?", text):
        for piece in inside.split(",") if inside else [""]:
            first, _, last = piece.partition("-")
            numbers = range(int(first), int(last or first) + 1) if first else [None]
            nodes += [name if n is None else f"{name}{n:0{len(first)}d}" for n in numbers]
    return nodes


def parse_partitions(text: str) -> list[PartitionLimits]:
    """Read `sinfo -N` lines: partition, node, state, gres, cpus, memory, limit, default time."""
    rows: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        fields = line.strip().split("|")
        rows.setdefault(fields[0], []).append(fields)
    found = [_partition(name, nodes) for name, nodes in rows.items()]
    return sorted(found, key=lambda limits: not limits.is_default)


def _partition(name: str, nodes: Sequence[Sequence[str]]) -> PartitionLimits:
    usable = [row for row in nodes if not re.match(r"(down|drain|fail|unk|maint)|.*\*$", row[2])]
    gres = re.search(r"gpu:(?:([^:(,]+):)?(\d+)", nodes[0][3])
    return PartitionLimits(
        name=name.rstrip("*"),
        is_default=name.endswith("*"),
        max_time_s=parse_time(nodes[0][6]),
        default_time_s=parse_time(nodes[0][7]),
        num_nodes=len(nodes),
        nodes_usable=len(usable),
        cpus_per_node=min(int(row[4].rstrip("+")) for row in nodes),
        mem_per_node_mib=min(int(row[5].rstrip("+")) for row in nodes),
        gpus_per_node=int(gres[2]) if gres else 0,
        gpu_type=gres[1] if gres and gres[1] else None,
    )


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
