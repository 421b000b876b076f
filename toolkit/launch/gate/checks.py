"""The table of all checks, and how they are run: all at once, each group with a time after which it is given up."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace

from toolkit.errors import ClusterError, ConfigError, Problem, RefusedError, ToolkitError
from toolkit.launch.gate.account import check_account
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.data import ANSWER_S, check_data
from toolkit.launch.gate.finding import Finding, Verdict, note, refuse, refuse_for
from toolkit.launch.gate.forecast import check_forecast
from toolkit.launch.gate.places import check_places, check_reachable
from toolkit.launch.gate.scheduler import check_scheduler
from toolkit.launch.gate.surroundings import check_environment, check_wandb

_SCHEDULER_S = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Checks that look at one thing, and so are made together."""

    names: tuple[str, ...]
    look: Callable[[Context], list[Finding]]
    limit_s: float = 10.0
    """After so long without an answer it is given up; the thread is left behind."""
    must_answer: bool = True
    """Whether silence refuses the run: the job would meet it too."""


GROUPS = (
    Group(names=("memory", "host-memory", "walltime"), look=check_forecast),
    Group(names=("shards", "tokenizer", "horizon"), look=check_data, limit_s=ANSWER_S + 5),
    Group(names=("places", "space"), look=check_places, limit_s=ANSWER_S + 5),
    Group(names=("reachable",), look=check_reachable, must_answer=False),
    Group(names=("environment",), look=check_environment, must_answer=False),
    Group(names=("partition", "gpus", "start"), look=check_scheduler, limit_s=_SCHEDULER_S, must_answer=False),
    Group(names=("account",), look=check_account, limit_s=_SCHEDULER_S, must_answer=False),
    Group(names=("wandb",), look=check_wandb),
)
CHECKS = tuple(name for group in GROUPS for name in group.names)
JOB, CHECKPOINT = "job", "checkpoint"
"""What is found beside the checks, and can be accepted like what they refuse: that the run's job may live elsewhere,
that its newest checkpoint is an older one than it had."""


@dataclass(slots=True)
class _Answer:
    """What a thread has come to."""

    findings: list[Finding] = field(default_factory=list)
    error: Exception | None = None


def refuse_unknown(accept: Collection[str]) -> None:
    """Raise where a check that is to be accepted does not exist.

    Raises:
        ConfigError: with the names of all checks.
    """
    known = [*CHECKS, JOB, CHECKPOINT]
    unknown = [name for name in accept if name not in known]
    if unknown:
        what = f"--accept {', '.join(unknown)}"
        raise ConfigError([Problem(what, f"checks are: {', '.join(known)}", "name the check that refused")])


def run_checks(context: Context, *, accept: Collection[str], groups: Sequence[Group] = GROUPS) -> list[Finding]:
    """Make all checks; a refusal that is accepted becomes a warning. In the order of the table."""
    begun = time.monotonic()
    running = [(group, *_start(group, context)) for group in groups]
    findings = []
    for group, thread, answer in running:
        thread.join(max(0.0, begun + group.limit_s - time.monotonic()))
        findings += _silence(group) if thread.is_alive() else _take(group, answer)
    return [_accept(finding) if finding.check in accept else finding for finding in findings]


def raise_refusals(findings: Sequence[Finding]) -> None:
    """Raise all that refuses the run, at once.

    Raises:
        RefusedError: something does.
    """
    problems = [finding.problem for finding in findings if finding.verdict is Verdict.REFUSAL]
    if problems:
        raise RefusedError(problems)


def _start(group: Group, context: Context) -> tuple[threading.Thread, _Answer]:
    answer = _Answer()

    def look() -> None:
        try:
            answer.findings = group.look(context)
        except Exception as error:  # told to the main thread
            answer.error = error

    # a pool would be waited for at the end of the process, and a file system that hangs does not let go
    thread = threading.Thread(target=copy_context().run, args=(look,), name=group.names[0], daemon=True)
    thread.start()
    return thread, answer


def _take(group: Group, answer: _Answer) -> list[Finding]:
    error = answer.error
    if error is None:
        return answer.findings
    if not isinstance(error, ToolkitError):
        raise error
    problem = Problem.parse(str(error))
    if isinstance(error, ClusterError) and not group.must_answer:
        return [note(group.names[0], f"could not be looked at: {problem.what}")]
    return [refuse_for(group.names[0], problem)]


def _silence(group: Group) -> list[Finding]:
    what = f"no answer within {group.limit_s:g} s ({', '.join(group.names)})"
    if not group.must_answer:
        return [note(group.names[0], what)]
    reason = "a file system that hangs here would stop the job too"
    return [refuse(group.names[0], what, reason, "try again, or see what hangs with: df")]


def _accept(finding: Finding) -> Finding:
    if finding.verdict is not Verdict.REFUSAL:
        return finding
    return replace(finding, verdict=Verdict.WARNING, is_accepted=True)
