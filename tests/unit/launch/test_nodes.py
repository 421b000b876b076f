"""The ledger of bad nodes."""

import json
import multiprocessing
import os
from pathlib import Path

from toolkit.launch.nodes import NodeEvent, NodeLedger, choose_exclusions, is_fault_of_node

HOUR = 3600.0
T0 = 1_000_000.0


def record(ledger: NodeLedger, node: str, kind: str, *, at: float, attempt: str = "1.0") -> NodeEvent:
    return ledger.record(node, kind, reason=f"{kind} of {node}", now=T0 + at * HOUR, run="r", attempt=attempt)


def left_out(ledger: NodeLedger, *, at: float) -> list[str]:
    return sorted(ledger.excluded(T0 + at * HOUR))


def test_no_file_excludes_nobody(tmp_path: Path) -> None:
    assert NodeLedger(tmp_path / "none").excluded(T0) == {}


def test_a_failed_probe_or_a_hang_excludes_at_once_for_a_day(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path)
    record(ledger, "n1", "probe", at=0)
    record(ledger, "n2", "hang", at=1)
    assert left_out(ledger, at=2) == ["n1", "n2"]
    assert ledger.excluded(T0 + 2 * HOUR)["n1"].reason == "probe of n1"
    assert left_out(ledger, at=24) == ["n2"]
    assert left_out(ledger, at=25) == []


def test_a_crash_excludes_at_the_second_attempt_that_it_killed(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path)
    record(ledger, "n1", "crash", at=0, attempt="1.0")
    record(ledger, "n1", "crash", at=0.1, attempt="1.0")  # told twice
    assert left_out(ledger, at=1) == []
    record(ledger, "n1", "crash", at=2, attempt="1.1")
    assert left_out(ledger, at=3) == ["n1"]
    record(ledger, "n2", "crash", at=0, attempt="1.0")
    record(ledger, "n2", "crash", at=8 * 24, attempt="9.0")  # the first one is forgotten after a week
    assert left_out(ledger, at=8 * 24 + 1) == []


def test_a_node_that_comes_back_is_left_out_twice_as_long(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path)
    assert record(ledger, "n1", "probe", at=0).expires == T0 + 24 * HOUR
    assert record(ledger, "n1", "probe", at=1).expires == T0 + 25 * HOUR  # another run saw the same: no second time
    assert record(ledger, "n1", "probe", at=30).expires == T0 + (30 + 48) * HOUR
    assert record(ledger, "n1", "hang", at=100).expires == T0 + (100 + 96) * HOUR
    assert ledger.excluded(T0 + 101 * HOUR)["n1"].times == 3


def test_a_pardon_forgets(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path)
    record(ledger, "n1", "probe", at=0)
    record(ledger, "n1", "pardon", at=1)
    assert left_out(ledger, at=2) == []
    assert record(ledger, "n1", "probe", at=50).expires == T0 + 74 * HOUR


def test_a_half_written_line_costs_that_event_only(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path)
    record(ledger, "n1", "probe", at=0)
    with ledger.path.open("ab") as file:
        file.write(b'{"node": "n2", "kind": "pro')  # a writer died
    record(ledger, "n3", "probe", at=1)
    with ledger.path.open("ab") as file:
        file.write(b'\xff\xfe\n[]\n{"node": "n4"}\nnull\n')
    assert left_out(ledger, at=2) == ["n1", "n3"]


def test_a_reason_stays_one_line(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path)
    ledger.record("n1", "probe", reason="a\nb " + "x" * 5000, now=T0)
    (line,) = ledger.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["reason"].startswith("a b xxx")
    assert len(line) < 1000


def write_many(root: Path, writer: int) -> None:
    ledger = NodeLedger(root)
    for turn in range(20):
        ledger.record(f"n{writer}-{turn}", "probe", reason="slow", now=T0, run=f"run{writer}")


def test_many_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, writer)) for writer in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    lines = (tmp_path / "nodes.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 120
    assert len(NodeLedger(tmp_path).excluded(T0)) == 120
    assert os.listdir(tmp_path) == ["nodes.jsonl"]


def test_exclusions_leave_as_many_nodes_as_the_run_wants(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path)
    nodes = [f"n{index}" for index in range(1, 7)]
    record(ledger, "n1", "crash", at=0, attempt="1.0")
    record(ledger, "n1", "crash", at=0, attempt="1.1")
    record(ledger, "n2", "probe", at=1)
    record(ledger, "n3", "probe", at=2)
    record(ledger, "n4", "hang", at=0)
    record(ledger, "gone", "probe", at=2)
    excluded = ledger.excluded(T0 + 3 * HOUR)
    assert choose_exclusions(excluded, nodes, 2) == ("n1", "n2", "n3", "n4")
    assert choose_exclusions(excluded, nodes, 4) == ("n3", "n4")  # the worst kind, then the newest
    assert choose_exclusions(excluded, nodes, 6) == ()
    assert choose_exclusions(excluded, nodes, 9) == ()
    assert choose_exclusions({}, nodes, 1) == ()


def test_last_words_about_parts_of_the_node_are_told_from_those_about_the_program() -> None:
    assert is_fault_of_node("RuntimeError: CUDA error: uncorrectable ECC error encountered")
    assert is_fault_of_node("/scratch/x: [Errno 5] Input/output error")
    assert not is_fault_of_node("RuntimeError: CUDA error: an illegal memory access was encountered")
    assert not is_fault_of_node("agree: rank 3 on node2 did not take part\n  Connection closed by peer")
