"""Whether a run goes on by itself after an attempt, and which node was to blame: values in, verdict out."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.cluster.batchlog import find_lost_nodes
from toolkit.cluster.hostlist import expand_nodes
from toolkit.launch.ledger import Attempt, Failure
from toolkit.launch.nodes import is_fault_of_node

BY_SCHEDULER = "requeued by the scheduler"
"""What came after an attempt that was preempted, or whose node failed."""

PREEMPTED, NODE_FAIL = "PREEMPTED", "NODE_FAIL"
"""Outcomes of attempts that the scheduler broke off."""

_BROKEN_OFF = {PREEMPTED, NODE_FAIL}

# Told to end, or warned before it listened; NCCL aborts where a peer is gone; the limit of memory is the job's own.
_ECHOES = (
    *("exit code", "Terminated", "SIGTERM", "SIGUSR2", "User defined signal 2", "Aborted", "SIGABRT"),
    "Out Of Memory",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """An attempt that has ended, and what went before it."""

    attempts: Sequence[Attempt]
    """Those since the run was submitted, oldest first; the last one is the one that ended."""
    failures: Sequence[Failure]
    """Last words of its ranks, causes before echoes."""
    is_halted: bool
    """Somebody wants the run to stand still."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the run goes on, and why."""

    goes_on: bool
    reason: str
    is_failure: bool = False
    """The run needs somebody to look after it."""


def decide(ending: Ending, *, max_requeues: int, max_fruitless: int) -> Verdict:
    """Judge whether the run goes on by itself."""
    last = ending.attempts[-1]
    if last.outcome == "FINISHED":
        return Verdict(False, "all tokens are done")
    if ending.is_halted:
        return Verdict(False, "it was stopped")
    lasting = next((failure for failure in ending.failures if failure.is_lasting), None)
    if lasting is not None:
        return Verdict(False, f"the same would happen again: {first_line(lasting.error)}", is_failure=True)
    if last.outcome == "FAILED":
        return Verdict(False, last.reason, is_failure=True)
    if len(ending.attempts) > max_requeues:
        return Verdict(False, f"cluster.max_requeues={max_requeues} is used up", is_failure=True)
    fruitless = _count_fruitless(ending.attempts)
    if fruitless >= max_fruitless:
        what = f"{fruitless} attempts in a row got no further"
        return Verdict(False, f"{what} (cluster.max_fruitless={max_fruitless})", is_failure=True)
    if _is_same_error(ending):
        where = "at the start" if last.last_step is None else f"at step {last.last_step}"
        return Verdict(False, f"the same error {where} twice", is_failure=True)
    return Verdict(True, last.reason)


def _count_fruitless(attempts: Sequence[Attempt]) -> int:
    """Count the newest attempts that saved nothing new; those that the scheduler broke off have not failed."""
    count, reached = 0, 0
    for attempt in reversed(attempts):
        # one that nobody could close (its first node died) got as far as the next one began
        if (reached if attempt.saved_step is None else attempt.saved_step) > (attempt.first_step or 0):
            break
        reached = attempt.first_step or 0
        count += attempt.next != BY_SCHEDULER and attempt.outcome not in _BROKEN_OFF
    return count


def _is_same_error(ending: Ending) -> bool:
    """Tell a mistake in the program from a fault of a machine: it comes back at the same step in the same words."""
    is_told = any(not failure.is_echo for failure in ending.failures)
    if len(ending.attempts) < 2 or not is_told or ending.attempts[-1].outcome in _BROKEN_OFF:
        return False
    before, last = ending.attempts[-2:]
    return (before.outcome, before.reason, before.last_step) == (last.outcome, last.reason, last.last_step)


def first_line(text: str) -> str:
    """Give the line that says what is wrong."""
    return text.splitlines()[0] if text else ""


def blame(causes: Sequence[Failure], exit_note: str, *, num_nodes: int) -> tuple[str, ...]:
    """Say which nodes ended an attempt; none where it may as well be the program, the data or what lies between nodes.

    Where most of the nodes are named, it is the network that failed. Where a run has one node only, all of its ranks
    fail alike, so that its words must speak of its parts. A rank that was told to end, or ended by itself without a
    word of its own, is the echo of another.
    """
    lost = find_lost_nodes(exit_note)
    if lost:
        return tuple(expand_nodes(lost))
    named = tuple(dict.fromkeys(node for failure in causes for node in failure.culprits))
    if named:
        return named if 2 * len(named) <= max(2, num_nodes) else ()
    if causes:
        told = [failure for failure in causes if num_nodes > 1 or is_fault_of_node(failure.error)]
        nodes = tuple(dict.fromkeys(failure.node for failure in told))
        return nodes if len(nodes) == 1 else ()
    who, _, how = exit_note.partition(": ")  # rank 3 on node2: Killed
    words = who.split()
    is_task = len(words) == 4 and words[0] == "rank"
    return (words[3],) if is_task and not any(mark in how for mark in _ECHOES) else ()
