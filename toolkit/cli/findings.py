"""What the gate found, one line a check."""

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from toolkit.launch.gate.finding import Finding, Verdict

_INDENT = " " * 24
_STYLES = {Verdict.OK: "dim", Verdict.NOTE: "", Verdict.WARNING: "yellow", Verdict.REFUSAL: "red"}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print the findings; what is well in one line, the rest with reason and remedy."""
    counts = [(verdict.value, sum(one.verdict is verdict for one in findings)) for verdict in Verdict]
    told = ", ".join(f"{count} {word}{'s' * (count > 1 and word != 'ok')}" for word, count in counts if count)
    console.print(f"checks     {told}", markup=False)
    for one in findings:
        word = "accepted" if one.is_accepted else one.verdict.value
        lines = [f"  {word:<9}{one.check:<12} {one.what}"]
        lines += [f"{_INDENT}{words}" for words in (one.reason, one.remedy) if words]
        for line in lines:
            console.print(Text(_fold(line, console), style=_STYLES[one.verdict]))


def _fold(line: str, console: Console) -> str:
    """Fold a line below its words on a terminal; a pipe gets it whole."""
    if not console.is_terminal:
        return line
    width = max(len(_INDENT) + 20, console.width)
    return textwrap.fill(line, width, subsequent_indent=_INDENT, drop_whitespace=True, break_on_hyphens=False)
