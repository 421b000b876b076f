"""Slurm: the job script by submitit's renderer, the verbs by Slurm's own commands.

submitit's executor would pickle the function and refuses to exist without srun, so a dry run on a laptop
could not show the script; its renderer is pure. It leaves out --requeue, --kill-on-bad-exit, the CPUs of
srun and --chdir. States are read from scontrol: without accounting sacct, which submitit asks, knows none.

Source: submitit 1.5.4, slurm/slurm.py; Slurm 22.05.
"""

import getpass
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit import storage
from toolkit.cluster.accounting import ASSOCIATION_COLUMNS, QOS_COLUMNS, Accounting, read_accounting
from toolkit.cluster.answers import (
    OWN_COLUMNS,
    expand_nodes,
    parse_jobs,
    parse_nodes,
    parse_own_jobs,
    parse_partitions,
    parse_state,
    read_exit_note,
)
from toolkit.cluster.base import JobState, JobStatus, Node, PartitionLimits, View, check_signal
from toolkit.cluster.commands import SilentError, UndecidedError, call, run_command
from toolkit.cluster.environment import environ_for_job
from toolkit.cluster.marks import write_comment
from toolkit.cluster.spec import JobSpec
from toolkit.cluster.view import JOB_COLUMNS, LIVE_STATES, NODE_COLUMNS, read_view
from toolkit.errors import ClusterError

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
ANSWER_S = 60.0
_DATABASE_S = 2.0
_RANK_LOG = "@RANK_LOG@"
_LOOK_AGAIN_S = 3.0
"""An order whose answer was lost may still lie in the controller's queue: so long, it is not given again."""


class SlurmCluster:
    """The cluster this machine belongs to.

    Args:
        patience_s: how long a command is tried again while the controller does not answer, in seconds.
        answer_s: how long one command may take, in seconds.
    """

    name = "slurm"

    def __init__(self, *, patience_s: float = PATIENCE_S, answer_s: float = ANSWER_S) -> None:
        self.patience_s, self.answer_s = patience_s, answer_s

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
            srun_args=[
                f"--kill-on-bad-exit={0 if spec.epilogue else 1}",
                "--wait=60",
                "--output",
                _RANK_LOG,
                *spec.srun_extra,
            ],
        )
        # srun's file names know the job's id but not how often it was requeued; submitit quotes variables.
        logs = _attempt_logs(spec)
        return _add_epilogue(text.replace(_RANK_LOG, f"{logs}/%t.out"), spec, log=f"{logs}/epilogue.out")

    def submit(self, spec: JobSpec, *, script_path: Path) -> str:
        """Hand the script to sbatch."""
        storage.write_atomic(str(script_path), self.render(spec).encode())
        environ = environ_for_job(os.environ, pass_env=spec.pass_env)
        return self._hand_in([str(script_path)], act=f"submit {spec.name}", mark=spec.mark, environ=environ)

    def check(self, spec: JobSpec) -> str:
        """Let Slurm judge the script without submitting it; its estimate of the start names the job's future id."""
        act = f"take {spec.name}"
        environ = environ_for_job(os.environ, pass_env=spec.pass_env)
        said = self._call(
            ["sbatch", "--test-only"], act=act, script=self.render(spec), keep_stderr=True, environ=environ
        )
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

    def own_jobs(self) -> list[JobStatus]:
        """Ask once for all jobs of this user, also those that ended a moment ago."""
        # a number, not a name: LOGNAME may say anything
        command = ["squeue", "-h", "-t", "all", "-u", str(os.getuid()), "-O", OWN_COLUMNS]
        return parse_own_jobs(self._call(command, act="look for your jobs"), exit_note=read_exit_note)

    def identify(self) -> str:
        """Read the cluster's name."""
        config = self._call(["scontrol", "show", "config"], act="read the name of the cluster")
        found = re.search(r"^ClusterName\s*=\s*(\S+)", config, flags=re.MULTILINE)
        return found[1] if found else ""

    def mark(self, job_id: str, mark: str) -> None:
        """Write a mark into the comment of a job that was handed in by hand."""
        self._call(["scontrol", "update", f"jobid={job_id}", f"comment={mark}"], act=f"mark job {job_id}")

    def follow_up(
        self, job_id: str, *, script_path: Path, exclude: Sequence[str], mark: str, pass_env: Sequence[str]
    ) -> str:
        """Hand the script in again behind its job; a follower that is there already is given back."""
        follower = self._find(mark)
        if follower is not None:
            return follower
        script = script_path.read_text(encoding="utf-8")
        own = _read_flag(script, "exclude")
        nodes = dict.fromkeys([*expand_nodes(own), *exclude])
        flags = [f"--dependency=afterany:{job_id}", f"--comment={write_comment(_read_flag(script, 'comment'), mark)}"]
        flags += [f"--exclude={','.join(nodes)}"] if nodes else []
        environ = environ_for_job(os.environ, pass_env=pass_env)
        return self._hand_in([*flags, str(script_path)], act=f"follow job {job_id}", mark=mark, environ=environ)

    def _hand_in(self, words: Sequence[str], *, act: str, mark: str, environ: Mapping[str, str]) -> str:
        """Run sbatch until it is known whether the job was taken; give its id.

        An answer may be lost after the job was taken: so its mark is looked for before it is handed in again, and
        before anybody is told that it was refused.

        Raises:
            UndecidedError: the controller does not answer; the job may have been taken.
            ClusterError: it was refused.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                answer = self._call(["sbatch", "--parsable", *words], act=act, patience_s=0.0, environ=environ)
                job_id = read_job_id(answer) or self._find(mark)
                if job_id is not None:
                    return job_id
                raise UndecidedError(act, f"sbatch gave no number of a job: {answer.strip()!r}", mark=mark)
            except UndecidedError:
                raise
            except ClusterError as error:
                taken = self._look_for(mark, error, act=act, deadline=deadline)
                if taken is not None:
                    return taken
                if not isinstance(error, SilentError) or time.monotonic() >= deadline:
                    raise

    def _look_for(self, mark: str, error: ClusterError, *, act: str, deadline: float) -> str | None:
        """Look for a job that was handed in and perhaps taken; None: it was not, the controller is sure of it."""
        reason = str(error).splitlines()[0].partition(": ")[2]
        if not mark:
            if isinstance(error, SilentError):
                raise UndecidedError(act, reason, mark=mark)
            return None
        looks = 2 if isinstance(error, SilentError) else 1
        while looks:
            try:
                taken = self._find(mark)
            except ClusterError:
                if time.monotonic() >= deadline:
                    raise UndecidedError(act, reason, mark=mark) from error
                time.sleep(1.0)
                continue
            looks -= 1
            if taken is not None or not looks:
                return taken
            time.sleep(_LOOK_AGAIN_S)
        return None

    def _find(self, mark: str) -> str | None:
        """Find the job that has a mark, the oldest if several have."""
        found = [job.job_id for job in self.own_jobs() if job.mark == mark] if mark else []
        return min(found, key=int, default=None)

    def signal(self, job_id: str, name: str) -> None:
        """Signal the tasks; without --batch and --full the batch shell is left alone."""
        check_signal(name)
        self._call(["scancel", f"--signal={name}", job_id], act=f"signal job {job_id}")

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

    def nodes(self, partition: str | None) -> list[Node]:
        """Read the nodes of a partition."""
        text = self._call(["sinfo", "-h", "-N", "-o", "%P|%N|%T|%E"], act="read the nodes")
        return parse_nodes(text, partition=partition)

    def look(self) -> View:
        """Read everything with three commands at once."""
        commands = [
            ["sinfo", "-h", "-N", "-O", NODE_COLUMNS],
            ["squeue", "-h", "-t", LIVE_STATES, "-o", JOB_COLUMNS],
            ["scontrol", "show", "reservation", "-o"],
        ]
        with ThreadPoolExecutor(len(commands)) as threads:
            calls = [threads.submit(self._call, words, act="show the cluster") for words in commands]
            nodes, jobs, reservations = (call.result() for call in calls)
        return read_view(nodes, jobs, reservations, now=time.time())

    def accounting(self) -> Accounting | None:
        """Ask the controller for limits and use, and sacctmgr, where it answers, for what users may have of a QOS."""
        user, act = getpass.getuser(), "show accounts"
        asked = [
            f"show qos format={','.join(QOS_COLUMNS)}",
            f"show assoc user={user} format={','.join(ASSOCIATION_COLUMNS)}",
        ]
        with ThreadPoolExecutor(4) as threads:
            config = threads.submit(self._call, ["scontrol", "show", "config"], act=act)
            words = ["scontrol", "show", "assoc_mgr", f"users={user}", "flags=assoc,qos", "-o"]
            limits = threads.submit(self._call, words, act=act)
            rows = [threads.submit(self._ask_database, words.split()) for words in asked]
            return read_accounting(
                config.result(),
                limits.result(),
                qos_rows=rows[0].result(),
                association_rows=rows[1].result(),
                user=user,
                uid=os.getuid(),
            )

    def _ask_database(self, words: Sequence[str]) -> str:
        """Ask sacctmgr, which is of use where it answers at once."""
        said = run_command(["sacctmgr", "-n", "-P", *words], timeout_s=_DATABASE_S)
        return said.out if said.code == 0 else ""

    def runs_here(self, partition: str) -> bool:
        """Compare the addresses of the nodes with this machine's."""
        text = self._call(["sinfo", "-h", "-N", "-p", partition, "-o", "%o"], act="read the addresses of nodes")
        own = {"localhost", "::1", socket.gethostname(), socket.gethostname().partition(".")[0]}
        return all(address in own or address.startswith("127.") for address in text.split())

    def _state_by_accounting(self, job_id: str) -> JobStatus:
        said = run_command(["sacct", "-n", "-X", "-P", "-j", job_id, "-o", "State,End"], timeout_s=_DATABASE_S)
        words = said.out.split("|")[0].split() if said.code == 0 else []
        return JobStatus(job_id=job_id, state=parse_state(words[0] if words else ""))

    def _call(
        self,
        command: Sequence[str],
        *,
        act: str,
        script: str | None = None,
        keep_stderr: bool = False,
        patience_s: float | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command of Slurm; try again while the controller does not answer."""
        patience_s = self.patience_s if patience_s is None else patience_s
        said = call(command, act=act, answer_s=self.answer_s, patience_s=patience_s, script=script, environ=environ)
        return said.err if keep_stderr else said.out


def read_job_id(answer: str) -> str | None:
    """Read what `sbatch --parsable` prints: `7` or `7;cluster`, wherever a site's wrapper prints its own lines."""
    found = re.findall(r"^(\d+)(?:;\S+)?\s*$", answer, flags=re.MULTILINE)
    return found[-1] if found else None


def _read_flag(script: str, name: str) -> str:
    """Read the value of a flag in a script; empty: it is not there."""
    found = re.search(rf"^#SBATCH --{name}=(.+)$", script, flags=re.MULTILINE)
    return shlex.split(found[1])[0] if found else ""


def _add_epilogue(text: str, spec: JobSpec, *, log: str) -> str:
    """Let srun's end not be the script's, and run what comes after it."""
    if not spec.epilogue:
        return text
    head, mark, srun = text.rpartition("\nsrun ")
    assert mark, "submitit's script has no srun line"
    after = f'{spec.epilogue_line} "$code" >>{log} 2>&1'
    return f"{head}\nsource sbatch/tasks.sh\nrun_tasks srun {srun.rstrip()}\n\n# epilogue\n{after}\n"


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
    flags = {**parameters, **spec.sbatch_extra}
    if spec.mark:
        flags["comment"] = write_comment(str(spec.sbatch_extra.get("comment") or ""), spec.mark)
    return flags


def _setup(spec: JobSpec) -> list[str]:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in spec.env.items()]
    # -u comes after the site's lines: the scripts behind `module` read variables that are not set
    lines = ["set -u", "source sbatch/env.sh", f"mkdir -p {_attempt_logs(spec)}"]
    return ["set -eo pipefail", *exports, *spec.setup, *lines]


def _attempt_logs(spec: JobSpec) -> str:
    return f'{shlex.quote(str(spec.log_dir))}/"$TOOLKIT_ATTEMPT"'


def _minutes(seconds: int | None) -> int | None:
    return None if seconds is None else max(1, -(-seconds // 60))
