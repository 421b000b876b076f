"""Kinds of values: what a number or a text of a configuration may be, said in its declared type.

A mark raises ValueError where a value is not of its kind; its arguments are what is, what must hold and what to do.
"""

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from toolkit import storage

_MOST_CHARACTERS = 100_000  # Linux takes 131,072 bytes in one argument or variable
_VARIABLES = re.compile(r"\$(?:\$|(?P<bare>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\})?")
_BREAKS = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters, halves of surrogate pairs, and separators of lines and paragraphs."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number, both inclusive; `None` leaves a side open."""

    low: float | None = None
    high: float | None = None
    below: float | None = None
    """An upper bound that is not in the range itself."""

    def check(self, value: float) -> None:
        """Refuse what is outside."""
        if self.low is not None and value < self.low:
            raise ValueError(f"{value} is less than {self.low:g}")
        if self.high is not None and value > self.high:
            raise ValueError(f"{value} is more than {self.high:g}")
        if self.below is not None and value >= self.below:
            raise ValueError(f"{value} is not below {self.below:g}")


@dataclass(frozen=True, slots=True)
class Seconds:
    """Marks a whole number of seconds that may be written `90`, `30m`, `12h`, `2d`, `1-12:00:00`."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Marks a list of lines; an item of several lines is several items."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What a text must look like."""

    pattern: str
    must: str
    """The same in words."""

    def check(self, value: str) -> None:
        """Refuse what looks otherwise."""
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"{value!r} cannot be taken", self.must)


@dataclass(frozen=True, slots=True)
class Place:
    """Marks a path, or a URL: `~`, `~USER`, `$NAME` and `${NAME}` are those of the shell that submits; `$$` is `$`."""

    may_be_url: bool = True
    is_on_nodes: bool = False
    """A directory that each node has for itself."""

    def check(self, value: str) -> None:
        """Refuse what no file system takes."""
        check_text(value)
        if not value:
            raise ValueError("it is empty", "a path or a URL is wanted")
        if not storage.is_local(value):
            if not self.may_be_url:
                raise ValueError(f"{value} is a URL", "it must be a directory that all nodes see, as NFS or Lustre")
            return
        path = value.removeprefix("file://")
        longest = max((len(os.fsencode(name)) for name in path.split("/")), default=0)
        if longest > 255 or len(os.fsencode(path)) > 4000:
            must = "a file system takes names of 255 bytes, and Linux paths of 4,095"
            raise ValueError(f"a path of {len(path):,} characters, with a name of {longest:,} bytes", must)


PROJECT = Matches(r"[^/\\#?%:]{1,128}", "W&B takes 128 characters, and no / \\ # ? % :")
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
FLAG = r"[a-z][a-z0-9_-]*"

Count = Annotated[int, Range(1, 1_000_000_000)]
Natural = Annotated[int, Range(0, 1_000_000_000)]
Fraction = Annotated[float, Range(0.0, 1.0)]
Positive = Annotated[float, Range(1e-12, 1e12)]
Duration = Annotated[int, Seconds(), Range(1, 315_360_000)]
Filled = Annotated[str, Matches(r".+", "it must not be empty")]
Project = Annotated[str, PROJECT]
PathOrUrl = Annotated[str, Place()]
Variable = Annotated[str, Matches(VARIABLE, "a variable's name has letters, digits and _, no digit first")]
Word = Annotated[
    str, Matches(r"[^\s\\'\"]+", "a word of Slurm's has no blanks, quotes or backslashes (sbatch would lose them)")
]
Memory = Annotated[str, Matches(r"\d{1,12}[KMGTkmgt]?[Bb]?", "Slurm writes memory as 500G, 512000M, or 0 for all")]
Flag = Annotated[str, Matches(FLAG, "a flag of sbatch is written without dashes before it: gres")]


def has_break(text: str) -> bool:
    """Whether a text is more than one line, or holds what is not printed."""
    return any(unicodedata.category(character) in _BREAKS for character in text)


def check_text(text: str) -> None:
    """Refuse what would break a line of a script, a log or a configuration."""
    for index, character in enumerate(text):
        if unicodedata.category(character) in _BREAKS:
            code = f"U+{ord(character):04X}"
            what = f"{text[max(0, index - 20) : index + 20]!r} has a control character ({code})"
            raise ValueError(what, "a value is one line of printable text", "leave it out")
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"a text of {len(text):,} characters", f"{_MOST_CHARACTERS:,} are the most")


def expand_place(text: str, mark: Place, environ: Mapping[str, str]) -> str:
    """Write out the home directories and variables in a path; ValueError where they are not known."""

    def look_up(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else _find_value(found["bare"] or found["braced"], text, mark, environ)

    head, slash, rest = text.partition("/")
    start = _find_home(head) if head.startswith("~") else _VARIABLES.sub(look_up, head)
    expanded = start + slash + _VARIABLES.sub(look_up, rest)
    if expanded.startswith("~"):
        raise ValueError(f"{text} is {expanded}", "a `~` in a variable is no home directory", "write the path out")
    return expanded


def _find_home(name: str) -> str:
    home = os.path.expanduser(name)
    if home.startswith("~"):
        raise ValueError(f"{name} is no home directory", "there is no such user here", f"write ./{name} for a name")
    return home


def _find_value(name: str | None, text: str, mark: Place, environ: Mapping[str, str]) -> str:
    if name is None:
        must = "a `$` stands before the name of a variable: $NAME or ${NAME}"
        raise ValueError(f"{text} has a `$` without a name", must, "write $$ for a dollar sign")
    if mark.is_on_nodes and re.fullmatch(r"TMP|TEMP|TMPDIR|SLURM_\w+", name):
        must = "each node and job has its own, which is not known where the run is submitted"
        remedy = "leave it out: the job takes $SLURM_TMPDIR, $TMPDIR or /tmp of its node (export one in cluster.setup)"
        raise ValueError(f"{text} has ${name}", must, remedy)
    if not environ.get(name):
        raise ValueError(f"{text} has ${name}", "it is not set in this shell", "set it, or write the path out")
    return environ[name]


def escape_place(text: str) -> str:
    """Write a path so that `expand_place` gives it back."""
    return text.replace("$", "$$")
