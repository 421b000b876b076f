"""Nodes that failed, for all runs below one directory: who is left out of the next job, why, and until when."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit import records, remote
from toolkit.lock import hold_briefly
from toolkit.modes import private_files, share_like_folder

log = logging.getLogger(__name__)

PROBE, CRASH, HANG, MANUAL, PARDON = "probe", "crash", "hang", "manual", "pardon"
KINDS = (PROBE, CRASH, HANG, MANUAL, PARDON)

_HOURS = 24.0
_MOST_HOURS = 30 * 24.0
_CRASHES = 2  # attempts that a node may kill
_CRASH_MEMORY_S = 7 * 86400.0
# What a rank says when its node's parts fail; an illegal memory access or a lost connection may be anybody's.
_NODE_MARKS = (
    "uncorrectable ecc",
    "fallen off the bus",
    "cuda-capable device(s) is/are busy or unavailable",
    "no cuda-capable device",
    "hardware error",
    "input/output error",
    "read-only file system",
    "stale file handle",
    "bus error",
    "sigbus",
)
_WORST_FIRST = (MANUAL, HANG, PROBE, CRASH)


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeEvent:
    """One line of the ledger. Times are Unix seconds."""

    node: str
    kind: str
    """probe: failed the health check; crash: killed an attempt; hang: stopped one; manual: by a person; pardon: all
    before it is forgiven."""
    reason: str
    time: float
    expires: float
    """When what follows from it ends."""
    run: str = ""
    attempt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """Why a node is left out, and until when."""

    node: str
    kind: str
    reason: str
    since: float
    until: float
    times: int
    """How often it has been left out since its last pardon, this one counted."""


class NodeLedger:
    """The file `nodes.jsonl` in the directory of all runs: events are added, never changed.

    Several runs write at once, from several machines. Each event is one write to a file opened for appending, under a
    lock where the file system has locks (Lustre mounted without them, some NFS servers do not); it begins on a line of
    its own even when a writer died in the middle of the one before, and readers leave out lines that are not whole.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / "nodes.jsonl"

    def events(self) -> list[NodeEvent]:
        """Read all events, oldest first.

        Raises:
            RecordError: the file cannot be read.
        """
        events = records.read_lines(self.path, NodeEvent)
        return sorted((event for event in events if event.kind in KINDS), key=lambda event: event.time)

    def excluded(self, now: float) -> dict[str, Exclusion]:
        """Give the nodes that are left out now; see `find_excluded`."""
        return find_excluded(self.events(), now=now)

    def record(
        self,
        node: str,
        kind: str,
        *,
        reason: str,
        now: float,
        run: str = "",
        attempt: str = "",
        hours: float | None = None,
    ) -> NodeEvent:
        """Add an event; without `hours` it holds a day, twice as long each time the node comes back to it.

        Raises:
            StorageError: the file cannot be written.
        """
        assert kind in KINDS, f"{kind} is no kind of event"
        events = self.events()
        if hours is None:
            hours = choose_hours(events, node, kind, now=now)
        reason = " ".join(reason.split())[:500]  # one line, and one write
        event = NodeEvent(
            node=node, kind=kind, reason=reason, time=now, expires=now + hours * 3600, run=run, attempt=attempt
        )
        self._append(json.dumps(asdict(event)))
        return event

    def _append(self, line: str) -> None:
        with remote.telling(str(self.path)):
            with private_files():
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with hold_briefly(self.path.with_suffix(".lock")), self.path.open("ab+") as file:
                size = os.fstat(file.fileno()).st_size
                if size == 0:
                    share_like_folder(self.path)  # a job's umask would keep it from the other users of the runs
                is_torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
                os.write(file.fileno(), f"{chr(10) if is_torn else ''}{line}\n".encode())
                os.fsync(file.fileno())


def find_excluded(events: Sequence[NodeEvent], *, now: float) -> dict[str, Exclusion]:
    """Say which nodes are left out: pure.

    A failed probe, a hang, or a person's word leaves a node out at once, a crash at the second attempt that the node
    killed; each until it expires, and none from before a pardon.
    """
    found = {}
    for node in dict.fromkeys(event.node for event in events):
        counted = [event for event in _since_pardon(events, node) if _excludes(event, events)]
        active = [event for event in counted if event.time <= now < event.expires]
        if active:
            newest = max(active, key=lambda event: (event.expires, event.time))
            found[node] = Exclusion(
                node=node,
                kind=newest.kind,
                reason=newest.reason,
                since=newest.time,
                until=newest.expires,
                times=_count_terms(counted),
            )
    return found


def choose_hours(events: Sequence[NodeEvent], node: str, kind: str, *, now: float) -> float:
    """Choose how long an event holds: a day, doubled for each time the node was left out before, 30 days at most."""
    if kind in {PARDON, MANUAL}:
        return _HOURS
    served = [event for event in _since_pardon(events, node) if _excludes(event, events) and event.expires <= now]
    return float(min(_HOURS * 2 ** _count_terms(served), _MOST_HOURS))


def choose_exclusions(
    excluded: Mapping[str, Exclusion], usable_nodes: Sequence[str], wanted_nodes: int
) -> tuple[str, ...]:
    """Choose which nodes a job may really leave out, so that it still finds as many as it wants: pure.

    Where not all can be left out, the worst are: by a person's word, then hangs, failed probes, crashes; of a kind the
    most frequent, then the newest. Nodes that the scheduler does not offer anyway are not named.
    """
    candidates = [excluded[node] for node in usable_nodes if node in excluded]
    ranked = sorted(candidates, key=lambda one: (_WORST_FIRST.index(one.kind), -one.times, -one.since, one.node))
    spare = max(0, len(usable_nodes) - wanted_nodes)
    return tuple(sorted(one.node for one in ranked[:spare]))


def is_fault_of_node(error: str) -> bool:
    """Whether the last words of a rank speak of its node's parts rather than of the program: pure."""
    return any(mark in error.lower() for mark in _NODE_MARKS)


def _since_pardon(events: Sequence[NodeEvent], node: str) -> list[NodeEvent]:
    own = [event for event in events if event.node == node]
    pardons = [index for index, event in enumerate(own) if event.kind == PARDON]
    return own[pardons[-1] + 1 :] if pardons else own


def _excludes(event: NodeEvent, events: Sequence[NodeEvent]) -> bool:
    if event.kind != CRASH:
        return True
    killed = {
        (other.run, other.attempt)
        for other in _since_pardon(events, event.node)
        if other.kind == CRASH and event.time - _CRASH_MEMORY_S <= other.time <= event.time
    }
    return len(killed) >= _CRASHES


def _count_terms(events: Sequence[NodeEvent]) -> int:
    """Count how often a node was left out; what several runs said while it was out already is one time."""
    count, until = 0, float("-inf")
    for event in events:
        if event.time >= until:
            count += 1
        until = max(until, event.expires)
    return count
