"""The gate's look at the cluster: partition, GPUs, start; on a cluster that was recorded."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.gate import GPUS, FakeSlurm, make_context, only, verdicts, with_spec
from tests.unit.launch.test_outlook import RecordedCluster
from toolkit.cluster.base import View
from toolkit.cluster.slurm import SilentError
from toolkit.cluster.view import WAITS
from toolkit.errors import ClusterError
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.scheduler import check_scheduler

MAIN = replace(GPUS, name="main", num_nodes=8)


@pytest.fixture
def view() -> View:
    return RecordedCluster().view


def asked(
    root: Path, view: View, *settings: str, nodes: int = 2, said: str | Exception = "", hours: int = 1
) -> Context:
    cluster = FakeSlurm(view=view, said=said)
    context = make_context(root, "cluster.gpus_per_node=8", "cluster.gpu_type=h100", "batch.tokens_per_step=49_152",
                           f"cluster.nodes={nodes}", *settings, cluster=cluster, partition=MAIN)  # fmt: skip
    return with_spec(context, partition="main", gpus_per_node=8, time_limit_s=hours * 3600)


def test_a_job_that_finds_its_nodes_now_is_well(tmp_path: Path, view: View) -> None:
    found = check_scheduler(asked(tmp_path, view))
    assert verdicts(found) == {"partition": "ok", "gpus": "ok", "start": "ok"}
    assert "2 of 6 usable nodes of main" in only(found, "partition").what
    assert "2 nodes with 8 free" in only(found, "gpus").what
    assert only(found, "start").what == "now"


def test_a_job_that_waits_is_told_for_how_long_and_behind_whom(tmp_path: Path, view: View) -> None:
    found = check_scheduler(asked(tmp_path, view, nodes=4))
    assert verdicts(found) == {"partition": "ok", "gpus": "note", "start": "note"}
    assert only(found, "start").what.startswith("in about 15 h, with")


def test_fewer_usable_nodes_than_asked_for_and_a_closed_partition_are_warned_of(tmp_path: Path, view: View) -> None:
    found = check_scheduler(asked(tmp_path, view, nodes=8))
    assert verdicts(found) == {"partition": "warning", "gpus": "warning", "start": "note"}
    assert "6 of the 8 nodes of main can be used, 8 are asked for" in only(found, "partition").what
    closed = replace(view, partitions=tuple(replace(one, is_up=False) for one in view.partitions))
    assert only(check_scheduler(asked(tmp_path, closed)), "partition").what == "main is closed"


def test_more_nodes_than_a_job_may_have_are_refused(tmp_path: Path, view: View) -> None:
    few = replace(view, partitions=tuple(replace(one, max_nodes=1) for one in view.partitions))
    found = only(check_scheduler(asked(tmp_path, few)), "partition")
    assert (found.verdict.value, found.reason) == ("refused", "a job of main has at most 1")


def test_gpus_of_another_kind_than_planned_are_warned_of(tmp_path: Path, view: View) -> None:
    found = only(check_scheduler(asked(tmp_path, view, "cluster.gpu_type=a100")), "gpus")
    assert found.verdict.value == "warning"
    assert found.what == "the plan reckons with a100, nodes of main have h100"
    none = with_spec(asked(tmp_path, view), gpus_per_node=0)
    assert "main has none, the plan reckons with H100" in only(check_scheduler(none), "gpus").what


def test_what_slurm_refuses_is_refused_and_what_it_lets_wait_is_not(tmp_path: Path, view: View) -> None:
    no = ClusterError("Slurm refused to take tiny: Invalid feature specification\n  x")
    found = only(check_scheduler(asked(tmp_path, view, said=no)), "start")
    assert (found.verdict.value, found.what) == ("refused", "Invalid feature specification")
    no_nodes = ClusterError(f"Slurm refused to take tiny: {WAITS}\n  x")
    assert only(check_scheduler(asked(tmp_path, view, nodes=8, said=no_nodes)), "start").verdict.value == "note"
    assert only(check_scheduler(asked(tmp_path, view, said=no_nodes)), "start").verdict.value == "refused"
    silent = SilentError("Socket timed out")
    assert only(check_scheduler(asked(tmp_path, view, said=silent)), "start").verdict.value == "ok"


def test_jobs_that_make_way_are_named(tmp_path: Path, view: View) -> None:
    said = "sbatch: Job 9 to start at 2026-11-25T13:06:19 using 8 processors\nsbatch:   Preempts: 3"
    found = only(check_scheduler(asked(tmp_path, view, nodes=3, said=said)), "start")
    assert "preempting job 3" in found.what
    assert "sbatch --test-only, which fills no gaps: in about 11 h" in found.what
