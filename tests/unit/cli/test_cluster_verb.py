"""The verb `cluster`: one screen."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from tests.slurm_sites import view_site
from tests.unit.launch.test_outlook import NOW, RecordedCluster, look
from toolkit.cli.cluster import describe, print_outlook
from toolkit.cluster.base import Cluster
from toolkit.cluster.local import LocalCluster
from toolkit.config.schema import ClusterSection
from toolkit.errors import ClusterError
from toolkit.launch.nodes import MANUAL, NodeLedger
from toolkit.launch.outlook import Outlook, look_ahead


def screen(outlook: Outlook, *, width: int = 80) -> str:
    file = io.StringIO()
    print_outlook(outlook, Console(file=file, width=width, highlight=False))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_all_is_on_one_screen(tmp_path: Path, width: int) -> None:
    NodeLedger(tmp_path).record("node6", MANUAL, reason="its fans [2] are loud", now=NOW, hours=1)
    shown = screen(look(RecordedCluster(), tmp_path, nodes=4), width=width)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= width
    assert len(lines) <= 40
    told = " ".join(shown.split())
    assert "8 nodes, 2 free, 1 partly used, 3 in use, 2 out of use; 20 of 64 GPUs free" in told
    assert "main* 2 d 8 2 1 3 2 20 of 64 8 h100 2 7" in told
    assert "node8 1 drained 11-25 02:04 fan | broken [2], ask Jo (root)" in told
    assert "its fans [2] are loud" in told
    assert "maint node[5-8] 11-26 08:06 to 11-26 16:06" in told
    assert "6_[0-3] root 4 x 2 nodes for 5 h planned in about 20 h Priority" in told
    assert "ends next: job 2 (1 node) in 26 min" in told
    assert "a run of 4 nodes in main (1 h): 1 node now or 2 nodes in 26 min or" in told


def test_nodes_that_are_missing_are_counted(tmp_path: Path) -> None:
    told = " ".join(screen(look(RecordedCluster(), tmp_path, nodes=7)).split())
    assert "or 7 nodes when 1 node comes back (6 can be used)" in told
    refused = RecordedCluster(ClusterError("Slurm refused to take run: no such account\n  x"))
    told = " ".join(screen(look(refused, tmp_path, nodes=2)).split())
    assert "not 2 nodes Slurm refuses 2 nodes: no such account" in told


def test_a_closed_partition_and_a_short_gap_are_told(tmp_path: Path) -> None:
    told = " ".join(screen(look(RecordedCluster(), tmp_path, nodes=2, hours=3)).split())
    assert "2 nodes now with --time 166m" in told
    cluster = RecordedCluster()
    closed = tuple(replace(limits, is_up=False) for limits in cluster.view.partitions)
    cluster.view = replace(cluster.view, partitions=closed)
    told = " ".join(screen(look(cluster, tmp_path, nodes=2)).split())
    assert "main* (closed)" in told
    assert "partition main is closed" in told


def test_emulated_nodes_say_so(tmp_path: Path) -> None:
    outlook = look_ahead(ClusterSection(), LocalCluster(tmp_path / "state"), root=tmp_path, nodes=8)
    told = " ".join(screen(outlook).split())
    assert told.startswith("no Slurm here: nodes are emulated on this machine, 64 at most")
    assert "a run of 8 nodes in local (no time limit): 8 nodes now" in told


def test_json_has_everything(tmp_path: Path) -> None:
    plain = json.loads(json.dumps(describe(look(RecordedCluster(), tmp_path, nodes=4))))
    assert (plain["partition"], plain["nodes"], len(plain["view"]["nodes"])) == ("main", 4, 8)
    assert [start["nodes"] for start in plain["starts"]] == [2, 3, 4]
    assert plain["view"]["jobs"][0]["state"] == "RUNNING"
    assert plain["view"]["is_emulated"] is False


@pytest.mark.parametrize("site", ["acct", "mig", "private"])
def test_sites_of_other_shapes_fit_on_the_screen(tmp_path: Path, site: str) -> None:
    cluster = RecordedCluster()
    cluster.view = view_site(site)
    outlook = look_ahead(ClusterSection(), cast("Cluster", cluster), root=tmp_path, nodes=1)
    lines = [line.rstrip() for line in screen(outlook).splitlines()]
    assert max(map(len, lines)) <= 80
    told = " ".join(" ".join(lines).split())
    assert ("this site does not show what they do" in told) == (site == "private")
    assert "set" in lines[-1] or "set" in lines[-2]
    plain = json.loads(json.dumps(describe(outlook)))
    assert (plain["partition"], plain["question"]) == (None, outlook.question)
