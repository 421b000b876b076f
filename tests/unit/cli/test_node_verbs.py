"""The verbs about nodes."""

import argparse
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from toolkit.cli import nodes
from toolkit.errors import RunError
from toolkit.health.verdicts import RULES, Reading
from toolkit.launch.nodes import NodeLedger
from toolkit.launch.survey import HealthFiles, check_limits


def call(root: Path, *words: str) -> None:
    parser = argparse.ArgumentParser()
    nodes.add_verbs(parser.add_subparsers(required=True))
    asked = parser.parse_args([*words, "--root", str(root)])
    asked.verb(asked)


def leave_check(root: Path) -> None:
    files = HealthFiles(root, "7.0")
    for node, rate in {"n1": 30.0, "n2": 31.0, "n3": 4.0}.items():
        part = [Reading(probe="gpu matmul", node=node, value=600.0 + index, part=f"GPU {index}") for index in range(2)]
        files.write_rank(node, 0, [Reading(probe="host memory", node=node, value=rate), *part], rules=RULES)


def test_a_node_is_added_shown_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(tmp_path, "nodes")
    assert "no node is left out" in capsys.readouterr().out
    call(tmp_path, "nodes", "add", "n7", "--reason", "its fans [2] are loud", "--hours", "3")
    call(tmp_path, "nodes")
    shown = capsys.readouterr().out
    assert "n7 is left out for 3 h: its fans [2] are loud" in shown
    assert "manual" in shown
    assert "3.0 h" in shown
    call(tmp_path, "nodes", "--json")
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["node"], one["kind"], one["reason"]) == ("n7", "manual", "its fans [2] are loud")
    call(tmp_path, "nodes", "remove", "n7")
    assert NodeLedger(tmp_path).excluded(time.time()) == {}


def test_words_that_are_missing_or_wrong_are_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nodes add NODE --reason WHY"):
        call(tmp_path, "nodes", "add", "n1")
    with pytest.raises(RunError, match="n1 is not left out"):
        call(tmp_path, "nodes", "remove", "n1")
    with pytest.raises(RunError, match="must be more than 0"):
        call(tmp_path, "nodes", "add", "n1", "--reason", "x", "--hours", "0")
    with pytest.raises(RunError, match="none was made"):
        call(tmp_path, "health")


def test_a_check_is_shown_and_ends_with_3_where_a_node_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_check(tmp_path)
    with pytest.raises(SystemExit, match="3"):
        call(tmp_path, "health")
    shown = capsys.readouterr().out
    assert "n3: host memory: memory bandwidth: 4 GB/s, the median of all nodes is 30; check its DIMMs" in shown
    assert "2 of 3 nodes are good" in shown
    assert max(len(line) for line in shown.splitlines() if line.startswith(("n1", "n2", "n3 "))) <= 80
    with pytest.raises(SystemExit):
        call(tmp_path, "health", "--json")
    assert list(json.loads(capsys.readouterr().out)["bad_nodes"]) == ["n3"]


def test_a_report_writes_bad_and_silent_nodes_into_the_ledger(tmp_path: Path) -> None:
    leave_check(tmp_path)
    console = Console(quiet=True)
    code = nodes.report(tmp_path, "7.0", ["n1", "n2", "n3", "n4"], console, as_json=False, now=100.0)
    assert code == 3
    excluded = NodeLedger(tmp_path).excluded(200.0)
    assert sorted(excluded) == ["n3", "n4"]
    assert excluded["n4"].reason.startswith("probes: it said nothing")


def test_limits_are_named_after_probes() -> None:
    assert check_limits(["disk", "gpu matmul"]) == []
    (problem,) = check_limits(["gpu_matmul"])
    assert "health.limits has 'gpu_matmul'" in problem.what
