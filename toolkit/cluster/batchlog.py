"""What Slurm itself writes into a job's batch log: which task or node ended, and its own complaints. Pure.

Source: Slurm 22.05, measured; the lines begin with the name of the program that wrote them.
"""

import re

PREEMPTED = "preempted"
"""The note of an attempt that made way for another job."""

_OWN = re.compile(r"(?:srun|sbatch|slurmstepd\S*|slurmd\S*): (?:error|fatal): (.+)")
_TASK = re.compile(r"srun: error: (\S+): tasks? (\d+)\S*: (.+)")
_NODE = re.compile(r"srun: error: Node failure on (\S+)")
_ATTEMPT = re.compile(r"^attempt \S+$", flags=re.MULTILINE)


def newest_attempt(text: str) -> str:
    """Give the part of a batch log that is of the newest attempt; all attempts of a job write to one file."""
    return _ATTEMPT.split(text)[-1]


def find_exit_note(text: str) -> str:
    """Say how an attempt ended by what is nearest to the cause: a node, the scheduler, the first task, Slurm's words.

    The task that srun names first when a node dies is the one that lost the connection to it.
    """
    node = _NODE.search(text)
    if node is not None:
        return f"node {node[1]} failed"
    if "DUE TO PREEMPTION ***" in text:
        return PREEMPTED
    task = _TASK.search(text)
    if task is not None:
        return f"rank {task[2]} on {task[1]}: {task[3]}"
    said = find_complaints(text)
    return said[0] if said else ""


def find_complaints(text: str) -> list[str]:
    """List Slurm's own complaints but for those that only say that a task has ended; each once."""
    lines = (line.strip() for line in text.split("\n"))
    return list(dict.fromkeys(line for line in lines if _OWN.match(line) and not _TASK.match(line)))


def find_lost_nodes(exit_note: str) -> str:
    """Give the nodes that failed, as Slurm writes them; empty: none."""
    words = exit_note.split()
    return words[1] if len(words) == 3 and (words[0], words[2]) == ("node", "failed") else ""
