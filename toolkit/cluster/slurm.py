"""Slurm: the verbs by its own commands.

States are read from scontrol: without accounting sacct, which submitit asks, knows none.

Source: Slurm 22.05.
"""

import getpass
import grp
import logging
import os
import random
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit import storage
from toolkit.cluster.accounting import ASSOCIATION_COLUMNS, QOS_COLUMNS, Accounting, read_accounting
from toolkit.cluster.answers import parse_jobs, parse_state, read_exit_note
from toolkit.cluster.base import JobSpec, JobState, JobStatus, View, check_signal
from toolkit.cluster.hostlist import expand_nodes
from toolkit.cluster.inventory import LOAD_COLUMNS, Inventory, read_inventory, read_loads
from toolkit.cluster.partitions import Node, PartitionLimits, find_partition
from toolkit.cluster.script import render_script
from toolkit.cluster.view import JOB_COLUMNS, read_view
from toolkit.config.schema import ClusterSection
from toolkit.errors import ClusterError

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
ANSWER_S = 60.0
_DATABASE_S = 2.0
_LONGEST_PAUSE_S = 20.0
_SBATCH = {"account": "SBATCH_ACCOUNT", "qos": "SBATCH_QOS", "partition": "SBATCH_PARTITION"}
_PASSING = (
    "Unable to contact",
    "Socket timed out",
    "Connection refused",
    "Resource temporarily unavailable",
    "Unexpected message received",  # scontrol requeue, when nobody listens
    "Zero Bytes were transmitted",
    "Communication connection failure",
    "Message receive failure",
    "Connection timed out",
    "standby mode",  # the backup controller, before it takes over
)
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
        self._settings: tuple[str, ...] = ()
        """What Slurm said of partitions and configuration, which its administrators change: asked once."""
        self._inventory: Inventory | None = None
        """As it was read last."""

    def render(self, spec: JobSpec) -> str:
        """Write the batch script."""
        return render_script(spec)

    def submit(self, spec: JobSpec, *, script_path: Path) -> str:
        """Hand the script to sbatch."""
        storage.write_atomic(str(script_path), self.render(spec).encode())
        command = ["sbatch", "--parsable", str(script_path)]
        answer = self._call(command, act=f"submit {spec.name}", environ=_decided(os.environ))
        return answer.strip().split(";")[0]

    def check(self, spec: JobSpec) -> str:
        """Let Slurm judge the script without submitting it; its estimate of the start names the job's future id."""
        act = f"take {spec.name}"
        command, environ = ["sbatch", "--test-only"], _decided(os.environ)
        said = self._call(command, act=act, script=self.render(spec), keep_stderr=True, environ=environ)
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

    def follow_up(self, job_id: str, *, script_path: Path, exclude: Sequence[str]) -> str:
        """Hand the script in again behind its job; a follower that is there already is given back."""
        act = f"follow job {job_id}"
        script = script_path.read_text(encoding="utf-8")
        own = re.search(r"^#SBATCH --exclude=(\S+)", script, flags=re.MULTILINE)
        nodes = dict.fromkeys([*expand_nodes(own[1] if own else ""), *exclude])
        command = ["sbatch", "--parsable", f"--dependency=afterany:{job_id}"]
        command += [f"--exclude={','.join(nodes)}"] if nodes else []
        deadline = time.monotonic() + self.patience_s
        while True:
            # an answer may be lost after the job was taken: so look first, and again before every try
            follower = self._find_follower(job_id)
            if follower is not None:
                return follower
            try:
                answer = self._call([*command, str(script_path)], act=act, patience_s=0.0, environ=_outside(os.environ))
            except SilentError:
                if time.monotonic() >= deadline:
                    raise
                continue
            return answer.strip().split(";")[0]

    def _find_follower(self, job_id: str) -> str | None:
        text = self._call(["squeue", "-h", "-t", "PD", "-o", "%i %E"], act=f"look for followers of job {job_id}")
        found = re.search(rf"^(\d+) .*\bafterany:{job_id}\b", text, flags=re.MULTILINE)
        return found[1] if found else None

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
        try:
            loads, jobs, reservations, *nodes = self._ask_at_once(commands, act="show the cluster")
        except SilentError as error:
            raise SilentError(
                f"Slurm does not answer: {str(error).splitlines()[0].partition(': ')[2]}\n"
                "  its controller is down or busy; what runs goes on\n  see `scontrol ping`, and try again"
            ) from error
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
            return self._call(words, act=act, environ=_plain(os.environ))
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
            rows = [threads.submit(self._ask_database, words.split()) for words in asked]
            return read_accounting(
                self._settings[1],
                limits.result(),
                qos_rows=rows[0].result(),
                association_rows=rows[1].result(),
                user=user,
                uid=os.getuid(),
            )

    def _ask_database(self, words: Sequence[str]) -> str:
        """Ask sacctmgr, which is of use where it answers at once."""
        code, said, _ = _run(["sacctmgr", "-n", "-P", *words], script=None, environ=None, timeout_s=_DATABASE_S)
        return said if code == 0 else ""

    def runs_here(self, partition: str) -> bool:
        """Compare the addresses of the nodes with this machine's."""
        own = {"localhost", "::1", socket.gethostname(), socket.gethostname().partition(".")[0]}
        limits = self._inventory[0] if self._inventory else self.limits()
        nodes = find_partition(limits, partition).nodes
        return bool(nodes) and all(node.address in own or node.address.startswith("127.") for node in nodes)

    def _state_by_accounting(self, job_id: str) -> JobStatus:
        command = ["sacct", "-n", "-X", "-P", "-j", job_id, "-o", "State,End"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=self.answer_s)
        words = done.stdout.split("|")[0].split() if done.returncode == 0 else []
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
        deadline = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        pause_s = 1.0
        while True:
            code, said, complaint = _run(command, script=script, environ=environ, timeout_s=self.answer_s)
            if code == 0:
                return complaint if keep_stderr else said
            words = [line.split("error: ", 1)[-1].strip() for line in complaint.splitlines() if line.strip()]
            reason = "; ".join(words) or "no reason given"
            was_killed = code < 0  # at the end of a job every process of its script is told to end
            if not was_killed and not any(mark in complaint for mark in _PASSING):
                raise ClusterError(f"Slurm refused to {act}: {reason}\n  `sinfo` shows what there is")
            if time.monotonic() + pause_s > deadline:
                raise SilentError(f"Slurm refused to {act}: {reason}\n  `sinfo` shows what there is")
            log.warning("%s: %s; trying again", act, reason)
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class SilentError(ClusterError):
    """The controller did not answer; whether it did what was asked is not known."""


def _run(
    command: Sequence[str], *, script: str | None, environ: Mapping[str, str] | None, timeout_s: float
) -> tuple[int, str, str]:
    """Run a command; give its exit code and what it said on either stream."""
    try:
        done = subprocess.run(
            command, input=script, env=environ, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except FileNotFoundError:
        raise ClusterError(f"cannot run {command[0]}: there is none here\n  use a login node") from None
    except subprocess.TimeoutExpired:
        return 1, "", f"Socket timed out: {command[0]} said nothing for {timeout_s:g} s"
    return done.returncode, done.stdout, done.stderr


def fill_from_environment(section: ClusterSection, environ: Mapping[str, str]) -> ClusterSection:
    """Take what is open of account, QOS and partition from where sbatch would take it.

    A job that goes on inside another one no longer sees these variables, so the script has to say it.
    """
    is_open = {field: name for field, name in _SBATCH.items() if getattr(section, field) is None}
    told: dict[str, Any] = {field: environ.get(name) or None for field, name in is_open.items()}
    return replace(section, **told)


def _decided(environ: Mapping[str, str]) -> dict[str, str]:
    """Take away what would overrule the script, in which all of it is settled."""
    return {name: value for name, value in environ.items() if name not in _SBATCH.values()}


def _outside(environ: Mapping[str, str]) -> dict[str, str]:
    """Take away what a job has set, so that a job that is submitted inside it starts as one from a login node.

    sbatch hands the whole environment on, and sbatch/env.sh keeps a MASTER_ADDR that is set.
    """
    kept = {"SLURM_CONF", "SLURM_CONF_SERVER"}
    own = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "TOOLKIT_", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in environ.items() if name in kept or not name.startswith(own)}


def _plain(environ: Mapping[str, str]) -> dict[str, str]:
    """Take away what changes or hides a part of what sinfo and squeue say; arrays are told in full."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("SINFO_", "SQUEUE_"))}
    return {**kept, "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}


def _read_groups() -> list[str]:
    """Name the groups of this user; of root, whom Slurm lets in everywhere, none."""
    if os.getuid() == 0:
        return []
    names = []
    for number in {os.getgid(), *os.getgroups()}:
        with suppress(KeyError):  # it has no name
            names.append(grp.getgrgid(number).gr_name)
    return names
