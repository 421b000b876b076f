"""The processes of emulated nodes: started, signalled and ended as slurmstepd does it."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

TIMED_OUT = 124  # of timeout(1), and of sbatch/tasks.sh for tasks that live on


@dataclass(slots=True)
class Task:
    """One rank, one task of an array, or the epilogue."""

    rank: int
    """Of a task of an array: its index."""
    node: str
    process: "subprocess.Popen[bytes]"

    @property
    def exit_code(self) -> int | None:
        """Exit code as a shell gives it, 128 + n after signal n; None: it runs."""
        code = self.process.poll()
        return 128 - code if code is not None and code < 0 else code

    def describe_end(self) -> str:
        """Say how it ended: `rank 3 on node2: killed by SIGKILL`."""
        code = self.process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"rank {self.rank} on {self.node}: {how}"


def share_threads(num_ranks: int, *, cpus_per_task: int) -> int:
    """Say how many threads a rank of emulated nodes has: all of them share the cores of this machine."""
    return min(cpus_per_task, max(1, (os.cpu_count() or 1) // num_ranks))


def start_task(
    command: Sequence[str], *, rank: int, node: str, variables: Mapping[str, str], log_path: Path, umask: int
) -> Task:
    """Start a process in a session of its own, so that its children are signalled with it; it dies with its parent."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    setpriv = shutil.which("setpriv")
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*([setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []), *command],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            umask=umask,
        )
    return Task(rank=rank, node=node, process=process)


def send_signal(tasks: Iterable[Task], *numbers: int) -> None:
    """Signal the tasks that run, with their children."""
    for task in tasks:
        if task.exit_code is None:
            for number in numbers:
                _kill_group(task, number)


def tell_to_end(tasks: Iterable[Task]) -> None:
    """Ask tasks to end; SIGCONT, so that one that is stopped hears it."""
    send_signal(tasks, signal.SIGTERM, signal.SIGCONT)


def kill_tasks(tasks: Sequence[Task]) -> None:
    """Kill tasks and what they have left behind, and wait for their end."""
    for task in tasks:
        _kill_group(task, signal.SIGKILL)  # children may live on after their parent
    for task in tasks:
        task.process.wait()


def _kill_group(task: Task, number: int) -> None:
    try:
        os.killpg(task.process.pid, number)
    except ProcessLookupError:
        return


def own_identity() -> tuple[int, float]:
    """Give the id and the start of this process: a later process may get the same id."""
    me = psutil.Process()
    return me.pid, me.create_time()
