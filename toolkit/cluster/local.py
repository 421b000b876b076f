"""Emulated nodes: the verbs with processes of this machine, a rehearsal of the cluster.

A job is a directory below the state directory; a controller process of its own (controller.py) runs it
and survives the shell that submitted it. Verbs leave requests in files; the controller alone writes state.

    jobs/7/spec.json  script.sh  state.json  controller.log  requests/TIME-VERB:VALUE
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from toolkit import storage
from toolkit.cluster.base import JobState, JobStatus, QueuedJob, View, check_signal
from toolkit.cluster.environment import environ_for_job
from toolkit.cluster.jobfiles import START_S, is_running, read_spec, read_state, write_state
from toolkit.cluster.partitions import GpuGroup, Node, NodeLoad, PartitionLimits
from toolkit.cluster.shell import write_setup
from toolkit.cluster.spec import JobSpec
from toolkit.errors import ClusterError
from toolkit.modes import private_files

PARTITION = "local"
MAX_NODES = 64


class LocalCluster:
    """Emulated nodes whose jobs are kept in `state_dir`."""

    name = "local"

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir.absolute()

    def render(self, spec: JobSpec) -> str:
        """Write the script of a task, or of the epilogue; the controller sets the variables of Slurm before it."""
        lines = ["#!/bin/bash", "set -e", f"cd {shlex.quote(str(spec.work_dir))}"]
        line = spec.epilogue_line
        # as in sbatch/tasks.sh: the job may be told to end while the epilogue starts
        shield = ["if [ \"${1:-}\" = epilogue ]; then trap '' TERM; fi"] if line else []
        after = [f'if [ "${{1:-}}" = epilogue ]; then exec {line} "$2"; fi'] if line else []
        ready = [*write_setup(spec.setup, spec.env), "set -u"]
        return "\n".join([*lines, *shield, *ready, *after, f"exec {spec.command_line}", ""])

    def check(self, spec: JobSpec) -> str:
        """Take anything of bearable size; it starts at once."""
        choose_nodes(spec.nodes, exclude=spec.exclude)
        return ""

    def submit(self, spec: JobSpec, *, script_path: Path) -> str:
        """Start a controller for the job."""
        self.check(spec)
        script = self.render(spec)
        with private_files():
            storage.write_atomic(str(script_path), script.encode())
        return self._start(asdict(spec), script)

    def own_jobs(self) -> list[JobStatus]:
        """Read the states of all jobs here."""
        return [self.state(job_id) for job_id in self._job_ids()]

    def identify(self) -> str:
        """Emulated nodes are known by the directory of their jobs."""
        return ""

    def mark(self, job_id: str, mark: str) -> None:
        """Refuse: no job of emulated nodes is handed in by hand."""
        raise ClusterError(f"job {job_id} cannot be marked\n  jobs of emulated nodes have their mark from the start")

    def follow_up(
        self, job_id: str, *, script_path: Path, exclude: Sequence[str], mark: str, pass_env: Sequence[str]
    ) -> str:
        """Hand the script in again behind its job; a follower that is there already is given back."""
        follower = next((job.job_id for job in self.own_jobs() if mark and job.mark == mark), None)
        if follower is not None:
            return follower
        spec = read_spec(self._job_dir(job_id))
        if spec is None:
            raise ClusterError(f"there is no job {job_id}\n  a follower needs one\n  submit the run again")
        excluded = list(dict.fromkeys([*spec["exclude"], *exclude]))
        choose_nodes(spec["nodes"], exclude=excluded)
        script = script_path.read_text(encoding="utf-8")
        changed = {"dependency": f"afterany:{job_id}", "exclude": excluded, "mark": mark, "pass_env": list(pass_env)}
        return self._start({**spec, **changed}, script)

    def _start(self, spec: Mapping[str, Any], script: str) -> str:
        with private_files():
            job_id, job_dir = self._new_job_dir()
            (job_dir / "script.sh").write_text(script, encoding="utf-8")
            storage.write_atomic(str(job_dir / "spec.json"), json.dumps(spec, default=str, indent=1).encode())
            write_state(job_dir, {"state": JobState.PENDING, "submit_time": time.time()})
            log = (job_dir / "controller.log").open("ab")
        with log:  # the controller keeps the umask of the shell for its tasks
            controller = subprocess.Popen(
                [sys.executable, "-m", "toolkit.cluster.controller", str(job_dir)],
                env=environ_for_job(os.environ, pass_env=spec["pass_env"]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # outlives the submitting shell
            )
        self._await_start(job_dir, controller)
        return job_id

    def state(self, job_id: str) -> JobStatus:
        """Read the controller's last word; a controller that is gone took the job with it."""
        job_dir = self._job_dir(job_id)
        known, spec = read_state(job_dir), read_spec(job_dir)
        if known is None or spec is None:
            return JobStatus(job_id=job_id, state=JobState.UNKNOWN)
        state = JobState(known["state"])
        reason = known.get("reason", "")
        if state.is_live and not is_running(known):
            state, reason = JobState.NODE_FAIL, "the controller of the job was killed"
        return JobStatus(
            job_id=job_id,
            state=state,
            reason=reason,
            nodes=tuple(known.get("nodes", ())),
            restarts=known.get("restarts", 0),
            submit_time=known.get("submit_time"),
            start_time=known.get("start_time"),
            end_time=known.get("end_time"),
            exit_note=known.get("exit_note", ""),
            can_requeue=spec["requeue"],
            exclude=tuple(spec["exclude"]),
            time_limit_s=known.get("time_limit_s", spec["time_limit_s"]),
            mark=spec.get("mark", ""),
        )

    def recall(self, job_id: str) -> JobStatus:
        """Nothing is forgotten here but what was deleted."""
        return self.state(job_id)

    def nodes(self, partition: str | None) -> list[Node]:
        """List what this machine emulates; all of it is usable."""
        if partition not in {None, PARTITION}:
            return []
        return [
            Node(name=name, state="idle", reason="", is_usable=True) for name in choose_nodes(MAX_NODES, exclude=())
        ]

    def signal(self, job_id: str, name: str) -> None:
        """Ask the controller to signal the tasks."""
        check_signal(name)
        self._request(job_id, f"signal:{name}")

    def cancel(self, job_id: str) -> None:
        """Ask the controller to end the job."""
        self._request(job_id, "cancel")

    def requeue(self, job_id: str) -> None:
        """Ask the controller to start the job again under the same id."""
        if not self.state(job_id).can_requeue:
            raise ClusterError(f"job {job_id} cannot be requeued\n  it was submitted so\n  submit the run again")
        self._request(job_id, "requeue")

    def kill_node(self, job_id: str, node: int) -> None:
        """Let an emulated node of the job crash: 2 is node2."""
        self._request(job_id, f"kill_node:{self._find_node(job_id, node)}")

    def pause_node(self, job_id: str, node: int) -> None:
        """Let a node hang: SIGSTOP to all that runs on it."""
        self._request(job_id, f"pause_node:{self._find_node(job_id, node)}")

    def resume_node(self, job_id: str, node: int) -> None:
        """Let a node that hangs go on."""
        self._request(job_id, f"resume_node:{self._find_node(job_id, node)}")

    def preempt(self, job_id: str, *, grace_s: float) -> None:
        """Preempt as Slurm does: SIGTERM to the tasks; when the grace has passed, the job is requeued."""
        self._request(job_id, f"preempt:{grace_s}")

    def set_time_limit(self, job_id: str, *, limit_s: float) -> None:
        """Change the time limit, counted from the start of the job: `scontrol update TimeLimit`."""
        self._request(job_id, f"set_time_limit:{limit_s}")

    def deadline(self, job_id: str) -> float | None:
        """Tell when the time limit ends the job."""
        status = self.state(job_id)
        return status.end_time if status.state is JobState.RUNNING else None

    def limits(self) -> list[PartitionLimits]:
        """Describe this machine."""
        return [
            PartitionLimits(
                name=PARTITION,
                is_default=True,
                max_time_s=None,
                default_time_s=None,
                num_nodes=MAX_NODES,
                nodes_usable=MAX_NODES,
                cpus_per_node=os.cpu_count() or 1,
                mem_per_node_mib=psutil.virtual_memory().total >> 20,
                gpus_per_node=_count_gpus(),
                gpu_type=None,
            )
        ]

    def look(self) -> View:
        """Show the emulated nodes, all free since jobs share them, and the jobs that live."""
        (limits,) = self.limits()
        jobs = [job for job in map(self._queued, self._job_ids()) if job is not None]
        return View(
            scheduler=self.name,
            is_emulated=True,
            time=time.time(),
            partitions=(limits,),
            nodes=tuple(_emulated_load(node, limits) for node in self.nodes(None)),
            jobs=tuple(sorted(jobs, key=lambda job: (job.state is JobState.PENDING, int(job.job_id)))),
            reservations=(),
        )

    def accounting(self) -> None:
        """Nobody is charged for emulated nodes."""

    def runs_here(self, partition: str) -> bool:
        """They are this machine."""
        return True

    def _job_ids(self) -> list[str]:
        jobs = self.state_dir / "jobs"
        try:
            return [entry.name for entry in jobs.iterdir() if _is_number(entry.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ClusterError(
                f"{jobs} cannot be read: {error.strerror}\n  the jobs of emulated nodes are there"
            ) from error

    def _queued(self, job_id: str) -> QueuedJob | None:
        status, spec = self.state(job_id), read_spec(self._job_dir(job_id))
        if spec is None or not status.state.is_live:
            return None
        return QueuedJob(
            job_id=job_id,
            user="",
            partitions=(PARTITION,),
            state=status.state,
            reason=status.reason,
            num_nodes=spec["nodes"],
            num_tasks=len(spec["array"]) or 1,
            nodes=status.nodes,
            gpus_per_node=spec["gpus_per_node"],
            priority=0,
            submit_time=status.submit_time,
            start_time=status.start_time,
            end_time=status.end_time,
            time_limit_s=None if status.time_limit_s is None else round(status.time_limit_s),
        )

    def _new_job_dir(self) -> tuple[str, Path]:
        jobs = self.state_dir / "jobs"
        jobs.mkdir(parents=True, exist_ok=True)
        number = max((int(entry.name) for entry in jobs.iterdir() if _is_number(entry.name)), default=0) + 1
        while True:
            try:
                (jobs / str(number)).mkdir()
                break
            except FileExistsError:  # another submit was quicker
                number += 1
        (jobs / str(number) / "requests").mkdir()
        return str(number), jobs / str(number)

    def _job_dir(self, job_id: str) -> Path:
        return self.state_dir / "jobs" / job_id

    def _request(self, job_id: str, verb: str) -> None:
        if not self.state(job_id).state.is_live:
            raise ClusterError(f"job {job_id} is not running or waiting\n  only such a job can be changed")
        (self._job_dir(job_id) / "requests" / f"{time.time_ns()}-{verb}").touch()

    def _find_node(self, job_id: str, node: int) -> str:
        nodes = self.state(job_id).nodes
        if f"node{node}" not in nodes:
            raise ClusterError(f"job {job_id} has no node{node}\n  it has {', '.join(nodes) or 'none'}")
        return f"node{node}"

    def _await_start(self, job_dir: Path, controller: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            known = read_state(job_dir)
            if known and known.get("pid"):
                return
            if controller.poll() is not None:
                break
            time.sleep(0.02)
        tail = (job_dir / "controller.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise ClusterError(f"the controller of job {job_dir.name} did not start\n  {tail or 'it said nothing'}")


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _emulated_load(node: Node, limits: PartitionLimits) -> NodeLoad:
    return NodeLoad(
        name=node.name,
        partitions=(PARTITION,),
        state=node.state,
        is_usable=True,
        is_free=True,
        reason="",
        reason_by="",
        since=None,
        cpus=limits.cpus_per_node,
        cpus_used=0,
        mem_mib=limits.mem_per_node_mib,
        gpu_groups=(GpuGroup(type=None, count=limits.gpus_per_node),) if limits.gpus_per_node else (),
    )


def choose_nodes(count: int, *, exclude: Sequence[str]) -> list[str]:
    """Choose emulated nodes by name, the first ones that are not excluded.

    Raises:
        ClusterError: there are not so many.
    """
    left = [name for name in (f"node{number}" for number in range(1, MAX_NODES + 1)) if name not in set(exclude)]
    if count > len(left):
        out = f", {MAX_NODES - len(left)} of them excluded" if len(left) < MAX_NODES else ""
        raise ClusterError(f"{count} nodes\n  this machine emulates at most {MAX_NODES}{out}\n  use fewer --nodes")
    return left[:count]


def _count_gpus() -> int:
    gpus = Path("/proc/driver/nvidia/gpus")
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0
