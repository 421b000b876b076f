"""What a check has found: a name, a verdict, and a line; what is not well has a reason and a remedy."""

import enum
from dataclasses import dataclass

from toolkit.errors import Problem


class Verdict(enum.Enum):
    """What a finding means for the submission."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing is wrong."""
    WARNING = "warning"
    """It may go wrong or cost more than needed; it is submitted all the same."""
    REFUSAL = "refused"
    """It is not submitted, unless the check is accepted by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the gate."""

    check: str
    """Name of the check: what `--accept` takes."""
    verdict: Verdict
    what: str
    reason: str = ""
    remedy: str = ""
    is_accepted: bool = False
    """A refusal that the user overrides."""

    @property
    def problem(self) -> Problem:
        """Say a refusal as an error does, with the words that would override it."""
        words = [self.remedy, f"or --accept {self.check}"] if self.remedy else [f"--accept {self.check} overrides it"]
        return Problem(f"{self.check}: {self.what}", self.reason, "; ".join(words))


def ok(check: str, what: str) -> Finding:
    """Say that all is well."""
    return Finding(check=check, verdict=Verdict.OK, what=what)


def note(check: str, what: str, reason: str = "", remedy: str = "") -> Finding:
    """Say what is worth knowing."""
    return Finding(check=check, verdict=Verdict.NOTE, what=what, reason=reason, remedy=remedy)


def warn(check: str, what: str, reason: str, remedy: str) -> Finding:
    """Warn."""
    return Finding(check=check, verdict=Verdict.WARNING, what=what, reason=reason, remedy=remedy)


def refuse(check: str, what: str, reason: str, remedy: str) -> Finding:
    """Refuse."""
    return Finding(check=check, verdict=Verdict.REFUSAL, what=what, reason=reason, remedy=remedy)


def refuse_for(check: str, problem: Problem) -> Finding:
    """Refuse with the words of an error."""
    return refuse(check, problem.what, problem.rule, problem.remedy)
