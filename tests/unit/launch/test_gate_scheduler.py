"""The gate's look at the cluster: partition, GPUs, start; on a cluster that was recorded."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from tests.gate import CONFIG, GPUS, FakeSlurm, make_context, only, verdicts, with_spec
from tests.slurm_sites import change_nodes, view_site
from tests.unit.launch.test_outlook import RecordedCluster
from toolkit.cluster.base import View
from toolkit.cluster.commands import SilentError
from toolkit.cluster.partitions import find_partition
from toolkit.cluster.spec import ask_for_gpus
from toolkit.cluster.view import WAITS
from toolkit.config.load import load_config
from toolkit.config.schema import ClusterSection
from toolkit.errors import ClusterError
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding
from toolkit.launch.gate.scheduler import check_scheduler
from toolkit.launch.placement import fill_section, place

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


def on_site(root: Path, site: str, *settings: str, said: str | Exception = "", view: View | None = None) -> Context:
    """Ask on a recorded site for what `submit` would ask for."""
    seen = view or view_site(site)
    loaded = load_config(CONFIG, overrides=[f"run.root={root}", "batch.tokens_per_step=49_152", *settings]).config
    section = loaded.cluster
    partition = place(find_partition(seen.partitions, section.partition), section)
    filled = fill_section(section, partition)
    known = [word for word in settings if not word.startswith(("cluster.partition", "cluster.gpu"))]
    plain = [f"cluster.gpus_per_node={filled.gpus_per_node}", f"cluster.gpu_type={filled.gpu_type or 'null'}"]
    plain.append("batch.tokens_per_step=49_152")
    context = make_context(root, *known, *plain, cluster=FakeSlurm(view=seen, said=said),
        partition=partition,
    )  # fmt: skip
    spec = ask_for_gpus(replace(context.spec, **shared(filled)), filled, partition)  # type: ignore[arg-type]
    return replace(context, spec=spec)


def shared(section: ClusterSection) -> dict[str, object]:
    names = ("cpus_per_task", "partition", "reservation", "constraint")
    return {**{name: getattr(section, name) for name in names}, "time_limit_s": section.time_limit}


def test_a_run_in_a_mixed_partition_is_judged_by_the_nodes_of_its_kind(tmp_path: Path) -> None:
    context = on_site(tmp_path, "acct", "cluster.partition=gpu", "cluster.gpu_type=a100", "cluster.nodes=2")
    found = check_scheduler(context)
    assert context.spec.gpu_type == "a100"
    assert only(found, "partition").what.startswith("2 of 2 usable nodes of gpu with 4 a100 (it has 8 h100, 4 a100)")
    assert only(found, "gpus").what == "8 of 8 a100 free; 2 nodes with 4 free"
    assert verdicts(found) == {"partition": "ok", "gpus": "ok", "start": "ok"}


def test_start_now_is_never_said_of_what_no_node_can_run(tmp_path: Path) -> None:
    no_nodes = ClusterError(f"Slurm refused to take tiny: {WAITS}\n  x")
    settings = ("cluster.partition=gpu", "cluster.gpu_type=a100", "cluster.nodes=2")
    context = with_spec(on_site(tmp_path, "acct", *settings, said=no_nodes), gpus_per_node=8)
    found = only(check_scheduler(context), "start")
    assert (found.verdict.value, found.what) == ("refused", WAITS)
    out = change_nodes(view_site("acct"), {"gpu-b01": "drained"})
    waits = only(check_scheduler(on_site(tmp_path, "acct", *settings, said=no_nodes, view=out)), "start")
    assert waits.verdict.value == "note"


def test_a_partition_without_a_maximum_says_what_is_asked_for_instead_of_its_default(tmp_path: Path) -> None:
    found = only(check_scheduler(on_site(tmp_path, "acct", "cluster.partition=unl")), "partition")
    assert found.what.endswith("no time limit: the job asks for --time=UNLIMITED, not for its default of 2 min")


def test_partitions_that_take_no_such_job_are_refused(tmp_path: Path) -> None:
    found = only(check_scheduler(on_site(tmp_path, "acct", "cluster.partition=drainp")), "partition")
    assert (found.verdict.value, found.what) == ("refused", "drainp is closed")
    shut = check_scheduler(on_site(tmp_path, "acct", "cluster.partition=shut"))
    assert verdicts(shut) == {"partition": "warning", "gpus": "ok", "start": "note"}
    groups = ("cluster.partition=root_only", "cluster.gpu_type=v100")
    found = only(check_scheduler(on_site(tmp_path, "mig", *groups)), "partition")
    assert (found.verdict.value, found.reason) == ("refused", "it has AllowGroups=nogroup")


def test_what_a_site_hides_is_said_and_refuses_nothing(tmp_path: Path) -> None:
    settings = ("cluster.gpu_type=h100", "cluster.gpus_per_node=4")
    found = check_scheduler(on_site(tmp_path, "private", *settings))
    assert verdicts(found) == {"partition": "note", "gpus": "note", "start": "note"}
    assert only(found, "start").what == "no one can tell: this site hides its nodes"


def test_a_controller_that_is_full_is_told_before_sbatch_waits_for_it(tmp_path: Path) -> None:
    full = replace(view_site("strict"), num_jobs=9)
    context = on_site(tmp_path, "strict", "cluster.gpu_type=h100", view=full, said=ClusterError("not asked"))
    found = only(check_scheduler(context), "start")
    assert (found.verdict.value, found.what) == ("refused", "Slurm keeps 9 jobs, 1 would be handed in")
    room = on_site(tmp_path, "strict", "cluster.gpu_type=h100", view=replace(full, num_jobs=8))
    assert only(check_scheduler(room), "start").verdict.value == "ok"


RESERVED = (
    "ReservationName=course StartTime={} EndTime={} Duration=01:00:00 Nodes=gpu-b01 NodeCnt=1 CoreCnt=32 "
    "Features=(null) PartitionName=(null) Flags=SPEC_NODES TRES=cpu=32 Users=games Groups=(null) State=ACTIVE"
)


def reserved(root: Path, *settings: str, begins_in_s: float = -60.0, said: str | Exception = "") -> list[Finding]:
    now = view_site("acct").time
    times = [datetime.fromtimestamp(now + begins_in_s + passed).isoformat() for passed in (0, 3600)]
    view = view_site("acct", reservations=RESERVED.format(*times))
    asked = ("cluster.partition=a100", "cluster.reservation=course", *settings)
    return check_scheduler(on_site(root, "acct", *asked, view=view, said=said))


def test_a_reservation_is_held_against_nodes_and_time(tmp_path: Path) -> None:
    assert only(reserved(tmp_path, "cluster.time_limit=20m"), "partition").verdict.value == "ok"
    found = only(reserved(tmp_path, "cluster.time_limit=2h"), "partition")
    assert (found.verdict.value, found.remedy) == ("refused", "ask for --time 59m at most")
    found = only(reserved(tmp_path, "cluster.time_limit=20m", "cluster.nodes=2"), "partition")
    assert (found.verdict.value, found.reason) == ("refused", "nodes of it that the job can use: 1")
    found = only(
        check_scheduler(on_site(tmp_path, "acct", "cluster.partition=a100", "cluster.reservation=x")), "partition"
    )
    assert (found.what, found.reason) == ("there is no reservation x", "reservations that Slurm shows: none")


def test_a_reservation_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    early = ClusterError("Slurm refused to take tiny: allocation failure: Invalid time specified\n  x")
    found = reserved(tmp_path, "cluster.time_limit=20m", begins_in_s=1800, said=early)
    assert (only(found, "partition").verdict.value, only(found, "start").verdict.value) == ("ok", "note")
    assert only(found, "start").what.startswith("in 30 min")


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("Jobs may not be requeued on this cluster; drop --requeue", "cluster.requeue=false"),
        ("You must specify --mem", "cluster.mem_per_node"),
        ("You must specify --gres=gpu:N", "gpus-per-node: null"),
        ("Invalid feature specification", "cluster.constraint"),
        ("no", "cluster.sbatch_extra takes any flag"),
    ],
)
def test_a_refusal_comes_with_the_key_that_answers_it(tmp_path: Path, view: View, said: str, key: str) -> None:
    found = only(
        check_scheduler(asked(tmp_path, view, said=ClusterError(f"Slurm refused to take tiny: {said}\n  x"))), "start"
    )
    assert key in found.remedy
