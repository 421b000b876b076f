"""What would start soonest, on a cluster that was recorded."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tests.slurm_sites import view_site
from tests.unit.cluster.test_view import NOW, read_main
from toolkit.cluster.base import Cluster, View
from toolkit.cluster.commands import SilentError
from toolkit.cluster.spec import JobSpec
from toolkit.cluster.view import WAITS
from toolkit.config.schema import ClusterSection
from toolkit.errors import ClusterError
from toolkit.launch.nodes import MANUAL, NodeLedger
from toolkit.launch.outlook import Outlook, look_ahead

HOUR_S = 3600


class RecordedCluster:
    """Shows what was recorded, and says to every job what it is told to."""

    name = "slurm"

    def __init__(self, said: str | ClusterError = "") -> None:
        self.view, self.said, self.asked = read_main(), said, list[JobSpec]()

    def look(self) -> View:
        return self.view

    def check(self, spec: JobSpec) -> str:
        self.asked.append(spec)
        if isinstance(self.said, ClusterError):
            raise self.said
        return self.said


def look(
    cluster: RecordedCluster, root: Path, *, nodes: int | None, hours: int = 1, partition: str = "main"
) -> Outlook:
    section = ClusterSection(partition=partition, time_limit=hours * HOUR_S, account="physics")
    return look_ahead(section, cast("Cluster", cluster), root=root, nodes=nodes)


def offers(outlook: Outlook) -> list[tuple[int, int | None]]:
    return [(one.nodes, None if one.start_time is None else round(one.start_time - NOW)) for one in outlook.starts]


def test_fewer_nodes_are_offered_where_they_start_before(tmp_path: Path) -> None:
    cluster = RecordedCluster()
    outlook = look(cluster, tmp_path, nodes=4)
    assert offers(outlook) == [(2, 0), (3, 1598), (4, 53_198)]
    assert sorted(spec.nodes for spec in cluster.asked) == [2, 3, 4]
    spec = cluster.asked[0]
    assert (spec.account, spec.gpus_per_node, spec.gpu_type, spec.tasks_per_node, spec.cpus_per_task) == (
        "physics", 8, "h100", 8, 8,
    )  # fmt: skip
    assert outlook.unplanned_jobs == 3  # of the array, all tasks but the first


def test_without_a_number_all_good_nodes_are_meant(tmp_path: Path) -> None:
    NodeLedger(tmp_path).record("node6", MANUAL, reason="fan", now=NOW, hours=1)
    outlook = look(RecordedCluster(), tmp_path, nodes=None)
    assert (outlook.nodes, outlook.left_out, outlook.num_usable) == (5, ("node6",), 5)
    assert offers(outlook)[0] == (1, 0)
    needs_all = look(RecordedCluster(), tmp_path, nodes=6)
    assert (needs_all.left_out, needs_all.num_usable) == ((), 6)


def test_a_gap_that_is_too_short_is_told(tmp_path: Path) -> None:
    outlook = look(RecordedCluster(), tmp_path, nodes=2, hours=3)
    assert outlook.free_for_s == pytest.approx(9998)
    assert look(RecordedCluster(), tmp_path, nodes=2, hours=1).free_for_s is None


def test_a_refusal_is_told_from_a_wait_and_from_silence(tmp_path: Path) -> None:
    refused = look(RecordedCluster(ClusterError("Slurm refused to take run: no account\n  x")), tmp_path, nodes=2)
    assert (refused.starts[-1].refusal, refused.starts[-1].start_time) == ("no account", None)
    no_nodes = RecordedCluster(ClusterError(f"Slurm refused to take run: {WAITS}\n  x"))
    waits = look(no_nodes, tmp_path, nodes=7)  # two of eight are out
    assert (waits.starts[-1].refusal, waits.starts[-1].start_time) == ("", None)
    never = look(no_nodes, tmp_path, nodes=2)
    assert (never.starts[-1].refusal, never.starts[-1].start_time) == (WAITS, None)
    silent = look(RecordedCluster(SilentError("Socket timed out")), tmp_path, nodes=2)
    assert (silent.starts[-1].refusal, silent.starts[-1].start_time) == ("", NOW)


def test_jobs_that_make_way_are_named(tmp_path: Path) -> None:
    said = "sbatch: Job 9 to start at 2026-11-25T13:06:19 using 8 processors\nsbatch:   Preempts: 3"
    outlook = look(RecordedCluster(said), tmp_path, nodes=3)
    assert (outlook.starts[-1].preempts, outlook.starts[-1].start_time) == (("3",), NOW)
    assert outlook.starts[-1].slurm_time is not None


def test_a_large_partition_is_asked_a_few_times(tmp_path: Path) -> None:
    cluster = RecordedCluster()
    free, busy = cluster.view.nodes[4], cluster.view.nodes[0]
    running = cluster.view.jobs[0]
    cluster.view = replace(
        cluster.view,
        nodes=(free, *(replace(busy, name=f"n{index}") for index in range(1000))),
        jobs=tuple(replace(running, nodes=(f"n{i}",), end_time=NOW + 60 * (i + 2)) for i in range(1000)),
        reservations=(),
    )
    outlook = look(cluster, tmp_path, nodes=900)
    assert len(cluster.asked) == 5
    assert offers(outlook)[0] == (1, 0)
    assert offers(outlook)[-1] == (900, 60 * 900)


def test_a_partition_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="there is no partition 'nope'\n  there are: main, low"):
        look(RecordedCluster(), tmp_path, nodes=1, partition="nope")


def test_the_cluster_is_shown_where_it_cannot_be_said_what_a_run_would_get(tmp_path: Path) -> None:
    for site, partition, said in (
        ("acct", None, "no default partition"), ("mig", "vec", "cluster.gpu_type"), ("private", None, "does not show"),
    ):  # fmt: skip
        cluster = RecordedCluster()
        cluster.view = view_site(site)
        outlook = look_ahead(ClusterSection(partition=partition), cast("Cluster", cluster), root=tmp_path, nodes=1)
        assert (outlook.partition, outlook.starts, cluster.asked) == (None, (), [])
        assert said in outlook.question


def test_a_run_of_one_kind_of_gpu_counts_its_nodes_alone(tmp_path: Path) -> None:
    cluster = RecordedCluster()
    cluster.view = view_site("acct")
    section = ClusterSection(partition="gpu", gpu_type="a100", time_limit=HOUR_S)
    outlook = look_ahead(section, cast("Cluster", cluster), root=tmp_path, nodes=None)
    assert (outlook.nodes, outlook.usable) == (2, ("gpu-b01", "gpu-b02"))
    assert (cluster.asked[0].gpu_type, cluster.asked[0].gpus_per_node, cluster.asked[0].cpus_per_task) == ("a100", 4, 8)


def test_excluded_nodes_are_not_counted_however_they_are_written(tmp_path: Path) -> None:
    section = ClusterSection(partition="main", exclude=["node[5-6]"], time_limit=HOUR_S)
    outlook = look_ahead(section, cast("Cluster", RecordedCluster()), root=tmp_path, nodes=None)
    assert outlook.usable == ("node1", "node2", "node3", "node4")
    assert all(start.start_time != NOW for start in outlook.starts)
