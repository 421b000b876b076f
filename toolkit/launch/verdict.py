"""Whether a run goes on by itself after an attempt, and which node was to blame: values in, verdict out."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.launch.ledger import Attempt, Failure


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
        return Verdict(False, f"the same error at step {last.last_step} twice", is_failure=True)
    return Verdict(True, last.reason)


def _count_fruitless(attempts: Sequence[Attempt]) -> int:
    count = 0
    for attempt in reversed(attempts):
        if (attempt.saved_step or 0) > (attempt.first_step or 0):
            break
        count += 1
    return count


def _is_same_error(ending: Ending) -> bool:
    """Tell a mistake in the program from a fault of a machine: it comes back at the same step in the same words."""
    if len(ending.attempts) < 2 or not any(not failure.is_echo for failure in ending.failures):
        return False
    before, last = ending.attempts[-2:]
    return (before.outcome, before.reason, before.last_step) == (last.outcome, last.reason, last.last_step)


def first_line(text: str) -> str:
    """Give the line that says what is wrong."""
    return text.splitlines()[0] if text else ""


def blame(causes: Sequence[Failure], exit_note: str) -> tuple[str, ...]:
    """Say which nodes ended an attempt; none where all fail alike, since then it is the program or the data."""
    named = tuple(dict.fromkeys(node for failure in causes for node in failure.culprits))
    if named:
        return named
    nodes = tuple(dict.fromkeys(failure.node for failure in causes))
    if causes:
        return nodes if len(nodes) == 1 else ()
    words = exit_note.partition(":")[0].split()  # rank 3 on node2: Killed
    return (words[3],) if len(words) == 4 else ()
