"""Errors that a user can act on, each with its exit code; everything else is a bug."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.redact import redact

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the job asks to be requeued


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: what is, what must hold and who says so, what to do."""

    what: str
    rule: str
    remedy: str

    @classmethod
    def parse(cls, text: str) -> "Problem":
        """Take the text of an error apart: its last line is what to do."""
        what, *rest = text.split("\n  ")
        return cls(what, "\n  ".join(rest[:-1]), rest[-1] if rest else "")

    def __str__(self) -> str:
        """Render as one line and two indented ones; an empty part takes no line. Secrets are hidden."""
        return redact("\n  ".join(part for part in (self.what, self.rule, self.remedy) if part))


class ToolkitError(Exception):
    """Base of every error that a user can act on."""

    exit_code = EXIT_USAGE

    def __str__(self) -> str:
        """Give the text without the secrets that values, URLs or other programs' words may bring into it."""
        return redact(super().__str__())


class ProblemsError(ToolkitError):
    """Several mistakes found in one go; the text lists all of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an error without a problem was raised"
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class ConfigError(ProblemsError):
    """The configuration holds mistakes."""


class RefusedError(ProblemsError):
    """A check before submission (or on the node) refused to go on."""

    exit_code = EXIT_REFUSED


class DataError(ToolkitError):
    """A token dataset, or the text it is made from, is missing, damaged or does not fit."""


class StorageError(ToolkitError):
    """A file system did not do what was asked: unreachable, full, no permission."""


class ClusterError(ToolkitError):
    """The scheduler refused, or could not be reached."""


class CheckpointError(ToolkitError):
    """A checkpoint is missing, partial or damaged."""


class RunError(ToolkitError):
    """A run directory is missing, in use, or belongs to another configuration."""


class RecordError(ToolkitError):
    """A file of a run is damaged, or may not be read."""


class HeldError(ToolkitError):
    """Somebody else is at work on the same thing."""

    exit_code = EXIT_REFUSED


class TryAgainError(ToolkitError):
    """A passing trouble of the machine: the same job may succeed when it is started again."""

    exit_code = EXIT_TRY_AGAIN


class LostPeersError(TryAgainError):
    """Other ranks did not take part: the echo of a failure that happened elsewhere."""
