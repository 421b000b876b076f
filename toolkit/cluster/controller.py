"""Runs one job of emulated nodes from start to end: `python -m toolkit.cluster.controller JOB_DIR`.

It does what slurmctld, slurmd and srun do: variables of each task, time limit with the signal before it,
end of all when one fails, cancel, requeue, crash of a node; dependencies, and job arrays, whose tasks are
independent and take turns on the cores of this machine.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from toolkit.cluster.base import NEVER_STARTS, JobState
from toolkit.cluster.local import PARTITION, LocalCluster, read_state, write_state

KILL_WAIT_S = 15.0  # from SIGTERM to SIGKILL; Slurm's KillWait is 30
_POLL_S = 0.03


Verdict: TypeAlias = tuple[JobState, str, str]
"""How an attempt ended: state, reason, exit note."""


@dataclass(slots=True)
class Task:
    """One rank, or one task of an array."""

    rank: int
    """Of a task of an array: its index."""
    node: int
    process: "subprocess.Popen[bytes]"


@dataclass(slots=True)
class Attempt:
    """One start of the job."""

    tasks: list[Task]
    deadline: float | None
    """Unix seconds."""
    warned: bool = False
    lost_nodes: set[int] = field(default_factory=set)
    waiting: list[int] = field(default_factory=list)
    """Indices of the array that have not been started."""


class Controller:
    """Looks after one job; the state file is its only voice."""

    def __init__(self, job_dir: Path) -> None:
        self.job_dir = job_dir
        self.spec: dict[str, Any] = json.loads((job_dir / "spec.json").read_text(encoding="utf-8"))
        self.nodes = [f"node{number}" for number in range(1, self.spec["nodes"] + 1)]
        self.known: dict[str, Any] = dict(read_state(job_dir) or {})
        me = psutil.Process()
        self._tell(pid=me.pid, pid_time=me.create_time(), restarts=0, nodes=self.nodes)

    def run(self) -> None:
        """Run attempts until the job ends for good."""
        while True:
            state, reason, note = self._await_dependency() or self._run_attempt()
            again = state is JobState.REQUEUED or (state is JobState.NODE_FAIL and self.spec["requeue"])
            if not again:
                self._tell(state=state, reason=reason, exit_note=note, end_time=time.time())
                return
            restarts = self.known["restarts"] + 1
            self._tell(state=JobState.REQUEUED, reason=reason, exit_note=note, restarts=restarts)

    def _await_dependency(self) -> Verdict | None:
        """Wait for `afterok:ID[:ID]`; a verdict says that the job cannot start any more."""
        kind, *job_ids = (self.spec["dependency"] or "afterok").split(":")
        assert kind == "afterok", f"dependency {self.spec['dependency']} is not emulated"
        jobs = LocalCluster(self.job_dir.parents[1])
        self._tell(reason="Dependency" if job_ids else "")
        while job_ids:
            states = [jobs.state(job_id).state for job_id in job_ids]
            if all(state is JobState.COMPLETED for state in states):
                return None
            if not all(state is JobState.COMPLETED or state.is_live for state in states):
                return JobState.CANCELLED, NEVER_STARTS, ""
            verdict = self._obey_requests(Attempt(tasks=[], deadline=None))
            if verdict is not None:
                return verdict
            time.sleep(_POLL_S)
        return None

    def _run_attempt(self) -> Verdict:
        now = time.time()
        limit = self.spec["time_limit_s"]
        waiting = list(self.spec["array"])
        tasks = [] if waiting else self._start_ranks()
        attempt = Attempt(tasks=tasks, deadline=now + limit if limit else None, waiting=waiting)
        self._tell(state=JobState.RUNNING, reason="", exit_note="", start_time=now, end_time=attempt.deadline)
        try:
            while (verdict := self._look(attempt)) is None:
                time.sleep(_POLL_S)
        finally:
            _end_tasks(attempt.tasks, patience_s=0.0)
        return verdict

    def _look(self, attempt: Attempt) -> Verdict | None:
        """Take one look at clock, requests and tasks; a verdict ends the attempt."""
        verdict = self._obey_requests(attempt) or self._watch_clock(attempt)
        if verdict is not None:
            return verdict
        if self.spec["array"]:
            return self._look_at_array(attempt)
        failed = next((task for task in attempt.tasks if task.process.poll() not in (None, 0)), None)
        if failed is not None:
            note = f"rank {failed.rank} on {self.nodes[failed.node]}: {_describe(failed.process.returncode)}"
            if failed.node in attempt.lost_nodes:
                return JobState.NODE_FAIL, f"{self.nodes[failed.node]} crashed", note
            # As srun --kill-on-bad-exit: the others get SIGTERM, and a moment to say what they saw.
            _end_tasks(attempt.tasks, patience_s=2.0)
            return JobState.FAILED, "NonZeroExitCode", note
        if all(task.process.returncode == 0 for task in attempt.tasks):
            return JobState.COMPLETED, "", ""
        return None

    def _look_at_array(self, attempt: Attempt) -> Verdict | None:
        num_running = sum(task.process.poll() is None for task in attempt.tasks)
        while attempt.waiting and num_running < (os.cpu_count() or 1):
            attempt.tasks.append(self._start_array_task(attempt.waiting.pop(0)))
            num_running += 1
        if num_running:
            return None
        failed = [task for task in attempt.tasks if task.process.returncode != 0]
        notes = [f"task {task.rank} on {self.nodes[0]}: {_describe(task.process.returncode)}" for task in failed]
        return (JobState.FAILED, "NonZeroExitCode", "; ".join(notes)) if failed else (JobState.COMPLETED, "", "")

    def _obey_requests(self, attempt: Attempt) -> Verdict | None:
        for request in sorted((self.job_dir / "requests").iterdir()):
            request.unlink()
            if request.name == "cancel":
                _end_tasks(attempt.tasks, patience_s=KILL_WAIT_S)
                return JobState.CANCELLED, "cancelled", ""
            if request.name == "requeue":
                _end_tasks(attempt.tasks, patience_s=KILL_WAIT_S)
                return JobState.REQUEUED, "requeued", ""
            if request.name.startswith("kill-node-"):
                node = int(request.name.removeprefix("kill-node-")) - 1
                attempt.lost_nodes.add(node)
                _signal([task for task in attempt.tasks if task.node == node], signal.SIGKILL)
        return None

    def _watch_clock(self, attempt: Attempt) -> Verdict | None:
        if attempt.deadline is None:
            return None
        left_s = attempt.deadline - time.time()
        if left_s <= 0:
            _end_tasks(attempt.tasks, patience_s=KILL_WAIT_S)
            return JobState.TIMEOUT, "TimeLimit", ""
        if left_s <= self.spec["signal_delay_s"] and not attempt.warned:
            attempt.warned = True
            _signal(attempt.tasks, signal.SIGUSR2)
        return None

    def _start_ranks(self) -> list[Task]:
        per_node = self.spec["tasks_per_node"]
        attempt = f"{self.job_dir.name}.{self.known['restarts']}"
        common = self._variables(attempt)
        return [
            self._start_task(rank, node=rank // per_node, local_rank=rank % per_node, variables=common)
            for rank in range(self.spec["nodes"] * per_node)
        ]

    def _start_array_task(self, index: int) -> Task:
        array = {"SLURM_ARRAY_JOB_ID": self.job_dir.name, "SLURM_ARRAY_TASK_ID": str(index)}
        common = self._variables(f"{self.job_dir.name}_{index}.{self.known['restarts']}")
        task = self._start_task(0, node=0, local_rank=0, variables={**common, **array})
        return replace(task, rank=index)

    def _start_task(self, rank: int, *, node: int, local_rank: int, variables: Mapping[str, str]) -> Task:
        log_dir = Path(self.spec["log_dir"]) / variables["TOOLKIT_ATTEMPT"]
        log_dir.mkdir(parents=True, exist_ok=True)
        own = {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(local_rank),
            "SLURM_NODEID": str(node),
            "SLURMD_NODENAME": self.nodes[node],
        }
        with (log_dir / f"{rank}.out").open("ab") as log:
            process = subprocess.Popen(
                [*_die_with_me(), "bash", str(self.job_dir / "script.sh")],
                env={**os.environ, **variables, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its children are signalled with it
            )
        return Task(rank=rank, node=node, process=process)

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
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "GLOO_SOCKET_IFNAME": "lo",
            "SLURM_CPUS_PER_TASK": str(cpus),
            # all emulated nodes share the cores of this machine
            "OMP_NUM_THREADS": str(min(cpus, max(1, (os.cpu_count() or 1) // num_ranks))),
        }

    def _tell(self, **fields: Any) -> None:
        self.known.update(fields)
        write_state(self.job_dir, self.known)


def _die_with_me() -> list[str]:
    """Prefix a command so that it dies with its parent, however that ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _signal(tasks: list[Task], number: int) -> None:
    for task in tasks:
        if task.process.poll() is None:
            try:
                os.killpg(task.process.pid, number)
            except ProcessLookupError:
                continue


def _end_tasks(tasks: list[Task], *, patience_s: float) -> None:
    """End tasks and what they started: SIGTERM, then SIGKILL."""
    if patience_s:
        _signal(tasks, signal.SIGCONT)
        _signal(tasks, signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and any(task.process.poll() is None for task in tasks):
            time.sleep(_POLL_S)
    for task in tasks:
        try:
            os.killpg(task.process.pid, signal.SIGKILL)  # children may live on after their parent
        except ProcessLookupError:
            continue
        finally:
            task.process.wait()


def _describe(returncode: int) -> str:
    return f"killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


if __name__ == "__main__":
    Controller(Path(sys.argv[1])).run()
