"""The block of findings below the plan."""

import io

from rich.console import Console

from toolkit.cli.findings import print_findings
from toolkit.launch.gate.finding import Finding, Verdict, note, ok, warn

FOUND = [
    ok("memory", "61% of 79.1 GiB"),
    note("wandb", "no key [x]: recorded offline", remedy="type: wandb login"),
    warn(
        "horizon", "9 epochs", "a reason of many words that goes on and on, further than a narrow terminal", "more text"
    ),
    Finding(
        check="space", verdict=Verdict.WARNING, what="full", reason="must be free", remedy="free it", is_accepted=True
    ),
]


def screen(*, width: int, is_terminal: bool) -> list[str]:
    file = io.StringIO()
    console = Console(
        file=file, width=width, soft_wrap=True, highlight=False, force_terminal=is_terminal, no_color=True
    )
    print_findings(FOUND, console)
    return file.getvalue().splitlines()


def test_a_pipe_gets_one_line_a_check_and_what_is_not_well_has_reason_and_remedy() -> None:
    lines = screen(width=60, is_terminal=False)
    assert lines[:4] == [
        "checks     1 ok, 1 note, 2 warnings",
        "  ok       memory       61% of 79.1 GiB",
        "  note     wandb        no key [x]: recorded offline",
        "                        type: wandb login",
    ]
    assert lines[-3] == "  accepted space        full"
    assert len(lines) == 10


def test_a_narrow_terminal_folds_below_the_words() -> None:
    lines = screen(width=60, is_terminal=True)
    assert len(lines) > 10
    assert all(len(line.replace("\x1b[2m", "").replace("\x1b[0m", "")) <= 60 for line in lines)
