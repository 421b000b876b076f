"""Runs one job of emulated nodes from start to end: `python -m toolkit.cluster.controller JOB_DIR`.

It does what slurmctld, slurmd and srun do: variables of each task, time limit with the signal before it,
end of all when one fails, epilogue, cancel, requeue, preemption, crash and hang of a node; dependencies, and
job arrays, whose tasks are independent and take turns on the cores of this machine.
"""

import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from toolkit.cluster.base import NEVER_STARTS, TIME_IS_UP, JobState
from toolkit.cluster.jobfiles import read_state, write_state
from toolkit.cluster.local import PARTITION, LocalCluster, choose_nodes
from toolkit.cluster.tasks import (
    TIMED_OUT,
    Task,
    kill_tasks,
    own_identity,
    send_signal,
    share_threads,
    start_task,
    tell_to_end,
)
from toolkit.modes import PRIVATE_UMASK

KILL_WAIT_S = 15.0  # from SIGTERM to SIGKILL; Slurm's KillWait is 30
SURVIVORS_S = 6.0  # the same, for the tasks that outlive a failed one: as in sbatch/tasks.sh
WAIT_S = 60.0  # srun --wait: from the first task's end to the end of the others
_POLL_S = 0.03


Verdict: TypeAlias = tuple[JobState, str, str]
"""How an attempt ended: state, reason, exit note."""


@dataclass(slots=True)
class Attempt:
    """One start of the job. Times are Unix seconds."""

    start: float
    tasks: list[Task] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    """Indices of the array that have not been started."""
    variables: dict[str, str] = field(default_factory=dict)
    warned: bool = False
    lost_node: str | None = None
    failed: Task | None = None
    """The first task that ended badly."""
    first_end: float | None = None
    kill_tasks_at: float | None = None
    code: int | None = None
    """Exit code of the tasks, once they have ended or are not waited for any more."""
    epilogue: Task | None = None
    preempted_at: float | None = None
    """When its grace ends."""
    ending: tuple[JobState, str] | None = None
    """State and reason of an end that was ordered: by the clock or by a request."""
    kill_all_at: float | None = None

    @property
    def everything(self) -> list[Task]:
        """Give all its processes."""
        return [*self.tasks, *([self.epilogue] if self.epilogue else [])]

    @property
    def note(self) -> str:
        """Say which task failed first; empty: none."""
        return self.failed.describe_end() if self.failed else ""


class Controller:
    """Looks after one job; the state file is its only voice."""

    def __init__(self, job_dir: Path) -> None:
        self.job_dir = job_dir
        self.spec: dict[str, Any] = json.loads((job_dir / "spec.json").read_text(encoding="utf-8"))
        self.nodes = choose_nodes(self.spec["nodes"], exclude=self.spec["exclude"])
        self.umask = os.umask(
            PRIVATE_UMASK
        )  # tasks have that of the shell that submitted; the job's own files are private
        self.known: dict[str, Any] = dict(read_state(job_dir) or {})
        pid, pid_time = own_identity()
        self._tell(pid=pid, pid_time=pid_time, restarts=0, nodes=self.nodes)

    def run(self) -> None:
        """Run attempts until the job ends for good."""
        while True:
            state, reason, note = self._await_dependency() or self._run_attempt()
            if state is JobState.NODE_FAIL and self.spec["requeue"]:
                state = JobState.REQUEUED
                self.known["restarts"] += 1
            if state is not JobState.REQUEUED:
                self._tell(state=state, reason=reason, exit_note=note, end_time=time.time())
                return
            # what was asked of the attempt that has ended does not concern the next one
            self._read_requests(keep="cancel")
            self._tell(state=state, reason=reason, exit_note=note)

    def _await_dependency(self) -> Verdict | None:
        """Wait for `afterok:ID[:ID]` or `afterany:...`; a verdict says that the job cannot start any more."""
        kind, *job_ids = (self.spec["dependency"] or "afterok").split(":")
        assert kind in {"afterok", "afterany"}, f"dependency {self.spec['dependency']} is not emulated"
        jobs = LocalCluster(self.job_dir.parents[1])
        self._tell(reason="Dependency" if job_ids else "")
        while job_ids:
            states = [jobs.state(job_id).state for job_id in job_ids]
            if all(state is JobState.COMPLETED or (kind == "afterany" and not state.is_live) for state in states):
                return None
            can_still = kind == "afterany" or all(s is JobState.COMPLETED or s.is_live for s in states)
            if not can_still:
                return JobState.CANCELLED, NEVER_STARTS, ""
            if "cancel" in self._read_requests():
                return JobState.CANCELLED, "cancelled", ""
            time.sleep(_POLL_S)
        return None

    def _run_attempt(self) -> Verdict:
        attempt = Attempt(start=time.time(), waiting=list(self.spec["array"]))
        attempt.variables = self._variables(f"{self.job_dir.name}.{self.known['restarts']}")
        self.known.update(state=JobState.RUNNING, reason="", exit_note="", start_time=attempt.start)
        self._tell_limit(attempt)
        if not attempt.waiting:
            attempt.tasks = self._start_ranks(attempt.variables)
        try:
            while (verdict := self._look(attempt)) is None:
                time.sleep(_POLL_S)
        finally:
            kill_tasks(attempt.everything)
        return verdict

    def _look(self, attempt: Attempt) -> Verdict | None:
        """Take one look at requests, clock and tasks; a verdict ends the attempt."""
        for request in self._read_requests():
            verb, _, value = request.partition(":")
            self._obey[verb](self, attempt, value)
        self._watch_clock(attempt)
        if attempt.lost_node is not None:
            send_signal(attempt.tasks, signal.SIGKILL)
            return JobState.NODE_FAIL, "NodeDown", f"node {attempt.lost_node} failed"
        if attempt.kill_all_at is not None and time.time() >= attempt.kill_all_at:
            assert attempt.ending is not None, "an end without a reason"
            return (*attempt.ending, "")
        if self.spec["array"]:
            return self._look_at_array(attempt)
        if attempt.code is None:
            self._watch_tasks(attempt)
        if attempt.code is None:
            return None
        if self.spec["epilogue"] and attempt.epilogue is None:
            self._tell(exit_note=attempt.note)
            attempt.epilogue = self._start_epilogue(attempt)
        code = attempt.epilogue.exit_code if attempt.epilogue else attempt.code
        return None if code is None else self._judge(attempt, code)

    def _judge(self, attempt: Attempt, code: int) -> Verdict:
        if attempt.ending is not None:
            return (*attempt.ending, "")
        if code != 0:
            return JobState.FAILED, "NonZeroExitCode", attempt.note or f"epilogue: exit code {code}"
        return JobState.COMPLETED, "", ""

    def _watch_tasks(self, attempt: Attempt) -> None:
        """Do as srun --kill-on-bad-exit=1 --wait=60, and as sbatch/tasks.sh around it."""
        now = time.time()
        codes = [task.exit_code for task in attempt.tasks]
        ended = [code for code in codes if code is not None]
        if len(ended) == len(codes):
            attempt.code = max(ended)
        if ended and attempt.first_end is None:
            attempt.first_end = now
        if attempt.failed is None and any(ended):
            attempt.failed = next(task for task, code in zip(attempt.tasks, codes, strict=True) if code)
        is_late = attempt.first_end is not None and now > attempt.first_end + WAIT_S
        if attempt.code is None and attempt.kill_tasks_at is None and (attempt.failed or is_late):
            # the others get a moment to say what they saw
            tell_to_end(attempt.tasks)
            attempt.kill_tasks_at = now + SURVIVORS_S
        if attempt.kill_tasks_at is not None and now >= attempt.kill_tasks_at:
            send_signal(attempt.tasks, signal.SIGKILL)
        patience_is_over = attempt.kill_all_at is not None and now > attempt.kill_all_at - KILL_WAIT_S * 2 / 3
        if attempt.code is None and patience_is_over and self.spec["epilogue"]:
            attempt.code = TIMED_OUT

    def _look_at_array(self, attempt: Attempt) -> Verdict | None:
        num_running = sum(task.exit_code is None for task in attempt.tasks)
        while attempt.waiting and attempt.ending is None and num_running < (os.cpu_count() or 1):
            attempt.tasks.append(self._start_array_task(attempt.waiting.pop(0)))
            num_running += 1
        if num_running:
            return None
        if attempt.ending is not None:
            return (*attempt.ending, "")
        notes = [task.describe_end().replace("rank", "task") for task in attempt.tasks if task.exit_code != 0]
        return (JobState.FAILED, "NonZeroExitCode", "; ".join(notes)) if notes else (JobState.COMPLETED, "", "")

    def _end(self, attempt: Attempt, state: JobState, reason: str) -> None:
        """Order the end of everything: SIGTERM now, SIGKILL after KillWait."""
        if state is JobState.REQUEUED and (attempt.ending is None or attempt.ending[0] is not JobState.REQUEUED):
            self.known["restarts"] += 1  # Slurm counts it at once
        attempt.ending = (state, reason)
        if attempt.kill_all_at is None:
            attempt.kill_all_at = time.time() + KILL_WAIT_S
            said = reason if reason == TIME_IS_UP else ""  # Slurm tells no other reason before the end
            self._tell(state=JobState.COMPLETING, reason=said, end_time=time.time())
        tell_to_end(attempt.everything)

    def _watch_clock(self, attempt: Attempt) -> None:
        now = time.time()
        if attempt.ending is not None:
            return
        if attempt.preempted_at is not None and now >= attempt.preempted_at:
            self._end(attempt, JobState.REQUEUED if self.spec["requeue"] else JobState.PREEMPTED, "preempted")
            return
        limit = self.spec["time_limit_s"]
        left_s = attempt.start + limit - now if limit else float("inf")
        if left_s <= 0:
            self._end(attempt, JobState.TIMEOUT, TIME_IS_UP)
        elif left_s <= self.spec["signal_delay_s"] and not attempt.warned:
            attempt.warned = True
            send_signal(attempt.tasks, signal.SIGUSR2)

    def _read_requests(self, *, keep: str | None = None) -> list[str]:
        """Take the requests, oldest first; those of the kind `keep` stay."""
        found = []
        for path in sorted((self.job_dir / "requests").iterdir()):
            request = path.name.partition("-")[2]
            if request != keep:
                path.unlink()
                found.append(request)
        return found

    def _cancel(self, attempt: Attempt, _value: str) -> None:
        self._end(attempt, JobState.CANCELLED, "cancelled")

    def _requeue(self, attempt: Attempt, _value: str) -> None:
        self._end(attempt, JobState.REQUEUED, "requeued")

    def _preempt(self, attempt: Attempt, grace_s: str) -> None:
        """Tell the tasks, and not the epilogue; the job runs on until the grace has passed."""
        attempt.preempted_at = time.time() + float(grace_s)
        tell_to_end(attempt.tasks)

    def _signal(self, attempt: Attempt, name: str) -> None:
        send_signal(attempt.tasks, signal.Signals[f"SIG{name}"])

    def _kill_node(self, attempt: Attempt, node: str) -> None:
        attempt.lost_node = node
        send_signal((task for task in attempt.everything if task.node == node), signal.SIGKILL)

    def _pause_node(self, attempt: Attempt, node: str) -> None:
        send_signal((task for task in attempt.everything if task.node == node), signal.SIGSTOP)

    def _resume_node(self, attempt: Attempt, node: str) -> None:
        send_signal((task for task in attempt.everything if task.node == node), signal.SIGCONT)

    def _set_time_limit(self, attempt: Attempt, limit_s: str) -> None:
        self.spec["time_limit_s"] = float(limit_s)
        self._tell_limit(attempt)

    _obey: ClassVar[dict[str, Callable[["Controller", Attempt, str], None]]] = {
        "cancel": _cancel,
        "requeue": _requeue,
        "preempt": _preempt,
        "signal": _signal,
        "kill_node": _kill_node,
        "pause_node": _pause_node,
        "resume_node": _resume_node,
        "set_time_limit": _set_time_limit,
    }

    def _tell_limit(self, attempt: Attempt) -> None:
        limit = self.spec["time_limit_s"]
        self._tell(time_limit_s=limit, end_time=attempt.start + limit if limit else None)

    def _start_ranks(self, variables: dict[str, str]) -> list[Task]:
        per_node = self.spec["tasks_per_node"]
        return [
            self._start_task(rank, node=rank // per_node, local_rank=rank % per_node, variables=variables)
            for rank in range(self.spec["nodes"] * per_node)
        ]

    def _start_array_task(self, index: int) -> Task:
        array = {"SLURM_ARRAY_JOB_ID": self.job_dir.name, "SLURM_ARRAY_TASK_ID": str(index)}
        common = self._variables(f"{self.job_dir.name}_{index}.{self.known['restarts']}")
        task = self._start_task(0, node=0, local_rank=0, variables={**common, **array})
        return replace(task, rank=index)

    def _start_epilogue(self, attempt: Attempt) -> Task:
        words = ("epilogue", str(attempt.code))
        return self._start_task(0, node=0, local_rank=0, variables=attempt.variables, log="epilogue", words=words)

    def _start_task(
        self,
        rank: int,
        *,
        node: int,
        local_rank: int,
        variables: dict[str, str],
        log: str | None = None,
        words: tuple[str, ...] = (),
    ) -> Task:
        own = {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(local_rank),
            "SLURM_NODEID": str(node),
            "SLURMD_NODENAME": self.nodes[node],
        }
        log_dir = Path(self.spec["log_dir"]) / variables["TOOLKIT_ATTEMPT"]
        return start_task(
            ["bash", str(self.job_dir / "script.sh"), *words],
            rank=rank,
            node=self.nodes[node],
            variables={**variables, **own},
            log_path=log_dir / f"{rank if log is None else log}.out",
            umask=self.umask,
        )

    def _variables(self, attempt: str) -> dict[str, str]:
        """Give the variables that Slurm (and sbatch/env.sh) would set, the same for every task."""
        num_ranks = self.spec["nodes"] * self.spec["tasks_per_node"]
        cpus = self.spec["cpus_per_task"] or 1
        restarts = self.known["restarts"]
        return {
            "SLURM_JOB_ID": self.job_dir.name,
            "SLURM_RESTART_COUNT": str(restarts) if restarts else "",
            "SLURM_NTASKS": str(num_ranks),
            "SLURM_NTASKS_PER_NODE": str(self.spec["tasks_per_node"]),
            "SLURM_JOB_NAME": self.spec["name"],
            "SLURM_JOB_PARTITION": PARTITION,
            "SLURM_JOB_NUM_NODES": str(self.spec["nodes"]),
            "SLURM_NNODES": str(self.spec["nodes"]),
            "SLURM_JOB_NODELIST": ",".join(self.nodes),
            "TOOLKIT_CLUSTER": "local",
            "TOOLKIT_LOCAL_STATE": str(self.job_dir.parents[1]),
            "TOOLKIT_ATTEMPT": attempt,
            "TOOLKIT_SECRET": secrets.token_hex(),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "GLOO_SOCKET_IFNAME": "lo",
            "SLURM_CPUS_PER_TASK": str(cpus),
            "OMP_NUM_THREADS": str(share_threads(num_ranks, cpus_per_task=cpus)),
        }

    def _tell(self, **fields: Any) -> None:
        self.known.update(fields)
        write_state(self.job_dir, self.known)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


if __name__ == "__main__":
    # Inherited: a warning that comes before a task listens must not kill it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    Controller(Path(sys.argv[1])).run()
