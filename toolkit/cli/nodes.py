"""The verbs about nodes: who is left out of jobs and why, and what a health check found."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toolkit.cli.amounts import amount
from toolkit.cli.show import print_json
from toolkit.errors import EXIT_DONE, EXIT_REFUSED, RunError, ToolkitError
from toolkit.health.verdicts import ALL, Verdict
from toolkit.launch.nodes import MANUAL, PARDON, NodeLedger
from toolkit.launch.survey import HealthFiles, Survey, record_bad_nodes

_DAY_S = 86400.0


def add_verbs(verbs: Any) -> None:
    """Add `nodes` and `health` to the verbs of a parser; each sets `verb`, a function of what was asked."""
    text = "show the nodes that are left out of jobs, and why; add or remove one"
    nodes = verbs.add_parser("nodes", help=text, description=text[0].upper() + text[1:] + ".")
    nodes.set_defaults(verb=_nodes)
    nodes.add_argument("act", nargs="?", choices=["add", "remove"], help="leave a node out, or take it back in")
    nodes.add_argument("node", nargs="?", help="name of the node, as the scheduler writes it")
    nodes.add_argument("--reason", help="with add: why")
    nodes.add_argument("--hours", type=amount, default=24.0, help="with add: for how long (default: %(default)g)")
    text = "show what a health check found (sbatch/health.sbatch); exit code 3 when a node is bad"
    health = verbs.add_parser("health", help=text, description=text[0].upper() + text[1:] + ".")
    health.set_defaults(verb=_health)
    health.add_argument("--attempt", help="attempt of the check's job, JOB.RESTARTS (default: the newest)")
    for verb in (nodes, health):
        verb.add_argument("--root", type=Path, default=Path("runs"), help="directory of runs (default: %(default)s)")
        verb.add_argument("--json", action="store_true", help="print JSON")


def print_nodes(root: Path, console: Console, *, as_json: bool, now: float) -> None:
    """Print the nodes that are left out now, the one that comes back last first."""
    excluded = NodeLedger(root).excluded(now)
    ranked = sorted(excluded.values(), key=lambda one: (-one.until, one.node))
    if as_json:
        print_json([asdict(one) for one in ranked])
        return
    if not ranked:
        console.print(f"no node is left out ({NodeLedger(root).path})", markup=False)
        return
    table = Table("node", "since", "for", "why", "times", "reason", box=None, pad_edge=False)
    for one in ranked:
        since = time.strftime("%m-%d %H:%M", time.localtime(one.since))
        table.add_row(
            one.node, since, f"{(one.until - now) / 3600:.1f} h", one.kind, str(one.times), escape(one.reason)
        )
    console.print(table)


def add(root: Path, node: str, *, reason: str, hours: float, now: float) -> str:
    """Leave a node out of jobs for some hours; give the sentence that says so."""
    if hours <= 0:
        raise RunError(f"--hours {hours:g}\n  it must be more than 0\n  to take a node back in: nodes remove {node}")
    NodeLedger(root).record(node, MANUAL, reason=reason, now=now, hours=hours)
    return f"{node} is left out for {hours:g} h: {reason}"


def remove(root: Path, node: str, *, now: float) -> str:
    """Take a node back in and forget what it did; give the sentence that says so."""
    ledger = NodeLedger(root)
    excluded = ledger.excluded(now)
    if node not in excluded:
        named = ", ".join(sorted(excluded)) or "none"
        raise RunError(f"{node} is not left out\n  left out now: {named}\n  see `python -m toolkit nodes`")
    ledger.record(node, PARDON, reason=f"it was left out for: {excluded[node].reason}", now=now)
    return f"{node} may be used again"


def print_survey(survey: Survey, console: Console, *, as_json: bool) -> None:
    """Print the verdicts on a partition: a line a node, and what is wrong with it below."""
    bad, troubles = survey.bad_nodes, survey.common_troubles
    if as_json:
        verdicts = [asdict(verdict) for verdict in survey.verdicts]
        named = {"nodes": list(survey.nodes), "bad_nodes": bad, "common_troubles": troubles}
        print_json({**named, "verdicts": verdicts})
        return
    units = {one.probe: one.unit for one in survey.verdicts if one.measured is not None and one.node != ALL}
    shown = sorted(units)
    table = Table("node", *(_header(probe, units[probe]) for probe in shown), "verdict", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    found: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in survey.verdicts:
        found.setdefault((verdict.node, verdict.probe), []).append(verdict)
    for node in dict.fromkeys([*survey.nodes, *bad]):
        cells = [_cell(found.get((node, probe), [])) for probe in shown]
        table.add_row(node, *cells, "[red]BAD[/red]" if node in bad else "ok")
    console.print(table)
    for probe, words in troubles.items():
        console.print(f"no node is blamed for {probe}: {words}", markup=False)
    for verdict in survey.verdicts:
        if (not verdict.ok and verdict.probe not in troubles) or verdict.node not in survey.nodes:
            remedy = f"; {verdict.remedy}" if verdict.remedy else ""
            console.print(f"{verdict.node}: {verdict.probe}: {verdict.words}{remedy}", markup=False)
    if not survey.is_connected:
        console.print("the nodes did not find each other, so nothing between them was measured", markup=False)
    good = len(survey.nodes) - len(bad)
    console.print(f"{good} of {len(survey.nodes)} nodes are good", markup=False)


def _header(probe: str, unit: str) -> str:
    """Write a probe's name above each other with its unit, so that a table of many stays narrow."""
    return "\n".join([*probe.split(), unit]).strip()


def _cell(found: Sequence[Verdict]) -> str:
    """Give the worst figure of a probe on a node: a bad one, or the one next to its limit."""
    figures = {one.measured: one for one in found if one.measured is not None}
    if not figures:
        return "-"
    worst = min(figures, key=lambda figure: (figures[figure].ok, abs(figure - (figures[figure].limit or 0.0))))
    text = f"{worst:.2g}" if abs(worst) < 1 else f"{worst:.3g}"
    return text if all(one.ok for one in found) else f"[red]{text}[/red]"


def report(root: Path, attempt: str, nodes: Sequence[str], console: Console, *, as_json: bool, now: float) -> int:
    """Judge what a health job's ranks wrote, print it, write bad nodes into the ledger; give the exit code."""
    survey = HealthFiles(root, attempt).read(nodes)
    print_survey(survey, console, as_json=as_json)
    record_bad_nodes(NodeLedger(root), survey.bad_nodes, run="", attempt=attempt, now=now)
    return EXIT_REFUSED if survey.bad_nodes or survey.common_troubles else EXIT_DONE


def _nodes(asked: argparse.Namespace) -> None:
    now = time.time()
    if asked.act is None:
        print_nodes(asked.root, Console(soft_wrap=True, highlight=False), as_json=asked.json, now=now)
        return
    if asked.node is None or (asked.act == "add" and not asked.reason):
        rest = "NODE --reason WHY" if asked.act == "add" else "NODE"
        raise RunError(f"nodes {asked.act} wants more words\n  nodes {asked.act} {rest}\n  see `nodes -h`")
    if asked.act == "add":
        print(add(asked.root, asked.node, reason=asked.reason, hours=asked.hours, now=now))
    else:
        print(remove(asked.root, asked.node, now=now))


def _health(asked: argparse.Namespace) -> None:
    attempts = HealthFiles.list_attempts(asked.root)
    attempt = asked.attempt or (attempts[-1] if attempts else "")
    if attempt not in attempts:
        known = ", ".join(attempts[-8:]) or "none"
        raise RunError(
            f"there is no health check {attempt or '(none was made)'} in {asked.root}\n  there are: {known}\n"
            "  make one: ROOT=runs sbatch --nodes N sbatch/health.sbatch"
        )
    survey = HealthFiles(asked.root, attempt).read(())
    print_survey(survey, Console(soft_wrap=True, highlight=False), as_json=asked.json)
    if survey.bad_nodes or survey.common_troubles:
        sys.exit(EXIT_REFUSED)


def main(arguments: Sequence[str]) -> int:
    """Judge a health job: its last line, `python -m toolkit.cli.nodes report`; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m toolkit.cli.nodes", description="Judge a health job.")
    parser.add_argument("act", choices=["report"])
    parser.add_argument("--root", type=Path, required=True, help="directory of all runs")
    parser.add_argument("--attempt", required=True, help="attempt of the health job")
    parser.add_argument("nodes", nargs="+", help="nodes of the job")
    asked = parser.parse_args(arguments)
    try:
        # a job's output is a file: as wide as the table needs
        console = Console(soft_wrap=True, highlight=False, width=240)
        return report(asked.root, asked.attempt, asked.nodes, console, as_json=False, now=time.time())
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
