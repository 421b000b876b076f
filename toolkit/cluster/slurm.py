"""Slurm: the verbs by its own commands.

States are read from scontrol: without accounting sacct, which submitit asks, knows none.

Source: Slurm 22.05.
"""

import getpass
import grp
import logging
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from toolkit import storage
from toolkit.cluster.accounting import ASSOCIATION_COLUMNS, QOS_COLUMNS, Accounting, read_accounting
from toolkit.cluster.answers import OWN_COLUMNS, parse_jobs, parse_own_jobs, parse_state, read_exit_note
from toolkit.cluster.base import JobState, JobStatus, View, check_signal
from toolkit.cluster.commands import SilentError, UndecidedError, call, run_command
from toolkit.cluster.environment import environ_for_job
from toolkit.cluster.hostlist import expand_nodes, shorten_nodes
from toolkit.cluster.inventory import LOAD_COLUMNS, Inventory, read_inventory, read_loads
from toolkit.cluster.marks import write_comment
from toolkit.cluster.partitions import Node, PartitionLimits, find_partition
from toolkit.cluster.script import render_script
from toolkit.cluster.spec import JobSpec
from toolkit.cluster.view import JOB_COLUMNS, read_view
from toolkit.errors import ClusterError
from toolkit.modes import private_files

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
ANSWER_S = 60.0
_DATABASE_S = 2.0
_LOOK_AGAIN_S = 3.0
"""An order whose answer was lost may still lie in the controller's queue: so long, it is not given again."""
_SETTINGS = (["scontrol", "show", "partition", "--all", "-o"], ["scontrol", "show", "config"])
_NODES = ["scontrol", "show", "node", "--all", "-o"]


class SlurmCluster:
    """The cluster this machine belongs to.

    Args:
        patience_s: how long a command is tried again while the controller does not answer, in seconds.
        answer_s: how long one command may take, in seconds.
    """

    name = "slurm"

    def __init__(self, *, patience_s: float = PATIENCE_S, answer_s: float = ANSWER_S) -> None:
        self.patience_s, self.answer_s = patience_s, answer_s
        self._silent: set[str] = set()
        """Commands of accounting that gave no answer."""
        self._settings: tuple[str, ...] = ()
        """What Slurm said of partitions and configuration, which its administrators change: asked once."""
        self._inventory: Inventory | None = None
        """As it was read last."""

    def render(self, spec: JobSpec) -> str:
        """Write the batch script."""
        return render_script(spec)

    def submit(self, spec: JobSpec, *, script_path: Path) -> str:
        """Hand the script to sbatch."""
        with private_files():
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
        """Read a job from the controller, with one call: without --local it is asked for federations too."""
        try:
            text = self._call(["scontrol", "--local", "show", "job", "-o", job_id], act=f"look at job {job_id}")
        except ClusterError as error:
            if "Invalid job id" not in str(error):
                raise
            return _unknown(job_id)
        return parse_jobs(text, exit_note=read_exit_note) if text.strip() else _unknown(job_id)

    def own_jobs(self) -> list[JobStatus]:
        """Ask once for all jobs of this user, also those that ended a moment ago."""
        # a number, not a name: LOGNAME may say anything
        command = ["squeue", "-h", "-t", "all", "-u", str(os.getuid()), "-O", OWN_COLUMNS]
        return parse_own_jobs(self._call(command, act="look for your jobs"), exit_note=read_exit_note)

    def identify(self) -> str:
        """Read the cluster's name."""
        if not self._settings:
            self._ask_at_once([], act="read the name of the cluster")
        found = re.search(r"^ClusterName\s*=\s*(\S+)", self._settings[1], flags=re.MULTILINE)
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
        flags += [f"--exclude={shorten_nodes(nodes)}"] if nodes else []
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
        (nodes,) = self._ask_at_once([_NODES], act="read the partitions")
        return list(self._read_inventory(nodes)[0])

    def nodes(self, partition: str | None) -> list[Node]:
        """Read the nodes of a partition, or of several with commas."""
        wanted = find_partition(self.limits(), partition)
        return [
            Node(name=node.name, state=node.state, reason=node.reason, is_usable=node.is_usable)
            for node in wanted.nodes
        ]

    def look(self) -> View:
        """Read everything at once."""
        commands = [
            ["sinfo", "--all", "-h", "-N", "-O", LOAD_COLUMNS],
            # all states: the controller sends every job anyway, and keeps a number of them at most
            ["squeue", "-h", "-t", "all", "-o", JOB_COLUMNS],
            ["scontrol", "show", "reservation", "-o"],
        ]
        if self._inventory is None:
            commands.append(_NODES)
        loads, jobs, reservations, *nodes = self._ask_at_once(commands, act="show the cluster")
        inventory = read_loads(self._inventory or self._read_inventory(nodes[0]), loads)
        return read_view(inventory, jobs or "", reservations or "", config=self._settings[1], now=time.time())

    def _ask_at_once(self, commands: Sequence[Sequence[str]], *, act: str) -> list[str | None]:
        """Run commands beside each other, with those that read what the site has set, once; None: it is not shown."""
        missing = [] if self._settings else list(_SETTINGS)
        with ThreadPoolExecutor(len(commands) + len(_SETTINGS)) as threads:
            calls = [threads.submit(self._ask_if_shown, words, act=act) for words in [*missing, *commands]]
            said = [call.result() for call in calls]
        if missing:
            self._settings = (said[0] or "", said[1] or "")
        return said[len(missing) :]

    def _ask_if_shown(self, words: Sequence[str], *, act: str) -> str | None:
        """Ask for what a site may hide from its users (PrivateData)."""
        try:
            return self._call(words, act=act)
        except SilentError:
            raise
        except ClusterError as error:
            if "denied" not in str(error):
                raise
            return None

    def _read_inventory(self, nodes: str | None) -> Inventory:
        partitions, config = self._settings
        self._inventory = read_inventory(partitions, nodes, config=config, groups=_read_groups())
        return self._inventory

    def accounting(self) -> Accounting | None:
        """Ask the controller for limits and use, and sacctmgr, where it answers, for what users may have of a QOS."""
        user, act = getpass.getuser(), "show accounts"
        asked = [
            f"show qos format={','.join(QOS_COLUMNS)}",
            f"show assoc user={user} format={','.join(ASSOCIATION_COLUMNS)}",
        ]
        if not self._settings:
            self._ask_at_once([], act=act)
        with ThreadPoolExecutor(3) as threads:
            words = ["scontrol", "show", "assoc_mgr", f"users={user}", "flags=assoc,qos", "-o"]
            limits = threads.submit(self._call, words, act=act)
            rows = [threads.submit(self._ask_database, ["sacctmgr", "-n", "-P", *words.split()]) for words in asked]
            return read_accounting(
                self._settings[1],
                limits.result(),
                qos_rows=rows[0].result(),
                association_rows=rows[1].result(),
                user=user,
                uid=os.getuid(),
            )

    def _ask_database(self, command: Sequence[str]) -> str:
        """Ask accounting, which is of use where it answers at once; one that does not is not asked again."""
        if command[0] in self._silent or shutil.which(command[0]) is None:
            return ""
        said = run_command(command, timeout_s=_DATABASE_S)
        if said.code == 0:
            return said.out
        self._silent.add(command[0])
        return ""

    def runs_here(self, partition: str) -> bool:
        """Compare the addresses of the nodes with this machine's."""
        own = {"localhost", "::1", socket.gethostname(), socket.gethostname().partition(".")[0]}
        limits = self._inventory[0] if self._inventory else self.limits()
        nodes = find_partition(limits, partition).nodes
        return bool(nodes) and all(node.address in own or node.address.startswith("127.") for node in nodes)

    def recall(self, job_id: str) -> JobStatus:
        """Ask accounting, where there is one that answers at once."""
        words = self._ask_database(["sacct", "-n", "-X", "-P", "-j", job_id, "-o", "State"]).split()
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


def _unknown(job_id: str) -> JobStatus:
    return JobStatus(job_id=job_id, state=JobState.UNKNOWN)


def read_job_id(answer: str) -> str | None:
    """Read what `sbatch --parsable` prints: `7` or `7;cluster`, wherever a site's wrapper prints its own lines."""
    found = re.findall(r"^(\d+)(?:;\S+)?\s*$", answer, flags=re.MULTILINE)
    return found[-1] if found else None


def _read_flag(script: str, name: str) -> str:
    """Read the value of a flag in a script; empty: it is not there."""
    found = re.search(rf"^#SBATCH --{name}=(.+)$", script, flags=re.MULTILINE)
    return shlex.split(found[1])[0] if found else ""


def _read_groups() -> list[str]:
    """Name the groups of this user; of root, whom Slurm lets in everywhere, none."""
    if os.getuid() == 0:
        return []
    names = []
    for number in {os.getgid(), *os.getgroups()}:
        with suppress(KeyError):  # it has no name
            names.append(grp.getgrgid(number).gr_name)
    return names
