"""The health check of a partition on a real Slurm, with a node that is bad in truth."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import CHECKOUT
from toolkit.cli import nodes as verbs
from toolkit.cluster.slurm import SlurmCluster
from toolkit.launch.nodes import NodeLedger, choose_exclusions
from toolkit.launch.survey import HealthFiles

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]

NODES = ["node1", "node2", "node3", "node4"]


def check(root: Path, *arguments: str, prolog: str = "", wait_s: int = 90) -> tuple[int, str, str]:
    """Submit sbatch/health.sbatch for all nodes; give exit code, output, and the attempt."""
    environ = {**os.environ, "ROOT": str(root / "runs"), "TOOLKIT_PYTHON": sys.executable, "HEALTH_WAIT_S": str(wait_s)}
    if prolog:  # what it prints as `export NAME=VALUE` is the environment of the task on that node
        script = root / "prolog.sh"
        script.write_text(f'#!/bin/bash\ncase "$SLURMD_NODENAME" in {prolog} esac\n', encoding="utf-8")
        script.chmod(0o755)
        environ["SLURM_TASK_PROLOG"] = str(script)
    flags = ["--nodes=4", "--cpus-per-task=1", "--time=5", f"--output={root}/out"]
    command = ["sbatch", "--parsable", *flags, "sbatch/health.sbatch", *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, check=True, timeout=60)
    job_id, deadline = done.stdout.strip(), time.monotonic() + 280
    while SlurmCluster().state(job_id).state.is_live:  # sbatch --wait looks every 20 s
        assert time.monotonic() < deadline, (root / "out").read_text(encoding="utf-8")
        time.sleep(0.3)
    shown = subprocess.run(["scontrol", "show", "job", job_id], capture_output=True, text=True, check=True, timeout=60)
    code = re.search(r"ExitCode=(\d+):0", shown.stdout)
    assert code is not None, shown.stdout
    return int(code[1]), (root / "out").read_text(encoding="utf-8"), f"{job_id}.0"


def test_good_nodes_pass_and_are_shown(tmp_path: Path) -> None:
    # limits far off: other tests share the cores of this machine, and nothing is measured for its own sake here
    code, output, attempt = check(tmp_path, "disk=0.01", "shared directory=60")
    assert code == 0, output
    assert "4 of 4 nodes are good" in output
    header = output[: output.index("\nnode1 ")]
    for word in ("clock", "cores", "disk", "matmul", "memory", "load", "pairs", "shared", "GB/s", "verdict"):
        assert word in header
    assert "all: all-reduce: bus bandwidth of all (4 MiB):" in output
    assert NodeLedger(tmp_path / "runs").events() == []
    survey = HealthFiles(tmp_path / "runs", attempt).read(NODES)
    assert survey.is_connected
    assert {verdict.node for verdict in survey.verdicts} == {*NODES, "all"}


def test_a_node_whose_disk_fails_is_named_written_down_and_left_out(tmp_path: Path) -> None:
    code, output, attempt = check(
        tmp_path, "disk=0.01", "shared directory=60", prolog='node3) echo "export TMPDIR=/proc" ;;'
    )
    assert code == 3, output
    assert "3 of 4 nodes are good" in output
    assert "node3: disk: /proc: cannot write: " in output
    assert "point TMPDIR elsewhere" in output
    root = tmp_path / "runs"
    (event,) = NodeLedger(root).events()
    assert (event.node, event.kind, event.attempt) == ("node3", "probe", attempt)
    assert "cannot write" in event.reason
    excluded = NodeLedger(root).excluded(time.time())
    assert choose_exclusions(excluded, NODES, 3) == ("node3",)
    assert choose_exclusions(excluded, NODES, 4) == ()
    assert verbs.remove(root, "node3", now=time.time()) == "node3 may be used again"
    assert NodeLedger(root).excluded(time.time()) == {}


def test_a_node_that_starts_no_programs_is_named_by_its_silence(tmp_path: Path) -> None:
    # its Python finds no standard library: the task ends at once, the others wait for it in vain and are heard all
    # the same
    code, output, attempt = check(
        tmp_path, "disk=0.01", "shared directory=60", prolog='node2) echo "export PYTHONHOME=/proc" ;;', wait_s=30
    )
    assert code == 3, output
    assert "node2: probes: it said nothing" in output
    assert "the nodes did not find each other" in output
    assert list(NodeLedger(tmp_path / "runs").excluded(time.time())) == ["node2"]
    files = sorted(path.name for path in HealthFiles(tmp_path / "runs", attempt).directory.iterdir())
    assert files == ["node1.0.json", "node3.0.json", "node4.0.json"]
    assert json.loads((HealthFiles(tmp_path / "runs", attempt).directory / "node1.0.json").read_text(encoding="utf-8"))
