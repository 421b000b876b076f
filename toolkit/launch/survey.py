"""What a health check of a partition found: written by its ranks, put together without them, torch or network."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit import records, storage
from toolkit.errors import Problem, RecordError, RunError
from toolkit.health.verdicts import ALL, RULES, Reading, Rule, Verdict, bad_nodes, common_troubles, judge
from toolkit.launch.nodes import PROBE, NodeLedger

_ALL = "all.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Verdicts on the nodes of a job."""

    verdicts: tuple[Verdict, ...]
    nodes: tuple[str, ...]
    is_connected: bool
    """Whether the ranks found each other; else nothing was measured between them."""

    @property
    def bad_nodes(self) -> dict[str, str]:
        """Give the nodes that must not be used, each with the reasons in words."""
        return bad_nodes(self.verdicts)

    @property
    def common_troubles(self) -> dict[str, str]:
        """Give the probes that most nodes failed, for which none is blamed."""
        return common_troubles(self.verdicts)


def check_limits(limits: Iterable[str]) -> list[Problem]:
    """Look whether limits are named after probes."""
    known = ", ".join(RULES)
    return [
        Problem(f"health.limits has {name!r}", "a limit is named after a probe", f"probes: {known}")
        for name in limits
        if name not in RULES
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What a file of a check holds."""

    readings: list[Reading]
    rules: dict[str, Rule]


def _read(path: Path) -> _Found:
    """Read a file of a check; one that is damaged says nothing, as a node that does not."""
    try:
        found = records.read_record(path, _Found)
    except RecordError as error:
        records.say_once(f"left out: {error}")
        found = None
    return found or _Found(readings=[], rules={})


class HealthFiles:
    """The directory `ROOT/.health/ATTEMPT`: a file a rank, written before it meets the others, and one of all."""

    def __init__(self, root: Path, attempt: str) -> None:
        self.directory = root / ".health" / attempt

    def write_rank(self, node: str, local_rank: int, readings: Sequence[Reading], *, rules: Mapping[str, Rule]) -> None:
        """Leave what one rank found."""
        self._write(f"{node}.{local_rank}.json", readings, rules)

    def write_all(self, readings: Sequence[Reading], *, rules: Mapping[str, Rule]) -> None:
        """Leave what all ranks found, second looks and network included."""
        self._write(_ALL, readings, rules)

    def _write(self, name: str, readings: Sequence[Reading], rules: Mapping[str, Rule]) -> None:
        changed = {probe: asdict(rule) for probe, rule in rules.items() if rule != RULES[probe]}
        text = json.dumps({"readings": [asdict(reading) for reading in readings], "rules": changed}, indent=1)
        storage.write_atomic(str(self.directory / name), text.encode())

    def read(self, nodes: Sequence[str]) -> Survey:
        """Judge what was found on the nodes of the job (none named: those that said something).

        A node that left nothing is bad.

        Raises:
            RunError: there is no such check.
        """
        if not self.directory.is_dir():
            raise RunError(
                f"there is no health check in {self.directory}\n  its ranks write it first of all\n"
                "  see the output of the job, and whether all nodes see that directory"
            )
        is_connected = (self.directory / _ALL).is_file()
        paths = [self.directory / _ALL] if is_connected else sorted(self.directory.glob("*.json"))
        readings: list[Reading] = []
        rules = dict(RULES)
        for path in paths:
            found = _read(path)
            readings += found.readings
            rules.update(found.rules)
        heard = {reading.node for reading in readings}
        silent = "it said nothing: it does not start programs, or does not see the directory of runs"
        readings += [
            Reading(probe="probes", node=node, value=None, trouble=silent) for node in nodes if node not in heard
        ]
        named = tuple(nodes) or tuple(sorted(heard - {ALL}))
        return Survey(verdicts=judge(readings, rules), nodes=named, is_connected=is_connected)

    @staticmethod
    def list_attempts(root: Path) -> list[str]:
        """List the checks that were made, oldest first."""
        found = (root / ".health").glob("*")
        return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime) if path.is_dir()]


def record_bad_nodes(ledger: NodeLedger, bad: Mapping[str, str], *, run: str, attempt: str, now: float) -> None:
    """Write nodes that failed a health check into the ledger."""
    for node, reason in bad.items():
        ledger.record(node, PROBE, reason=reason, now=now, run=run, attempt=attempt)
