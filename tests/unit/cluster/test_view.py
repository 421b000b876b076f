"""What Slurm's commands said of a cluster of eight nodes, and when a run would start on it.

Recorded on Slurm 22.05 (blanks before the columns' ends left out). Jobs that were then handed in started, or were
planned by Slurm's backfill, at the times that these tests expect.
"""

from dataclasses import replace
from datetime import datetime

import pytest

from tests.slurm_sites import change_nodes, make_job, read_recorded, view_site
from toolkit.cluster.base import JobState, View
from toolkit.cluster.inventory import read_inventory, read_loads
from toolkit.cluster.spec import JobSpec
from toolkit.cluster.view import (
    could_ever_start,
    fitting_nodes,
    longest_now,
    nodes_of,
    plan_starts,
    read_preempted,
    read_start,
    read_view,
    waiting,
)

HOUR_S = 3600.0


def at(clock: str) -> float:
    return datetime.fromisoformat(f"2026-11-25T{clock}").timestamp()


NOW = at("02:17:41")


@pytest.fixture
def view() -> View:
    return read_main()


def read_main(**changed: str) -> View:
    names = ("partitions", "nodes", "sinfo", "squeue", "reservations")
    partitions, nodes, loads, jobs, reservations = (changed.get(name) or read_recorded(f"{name}.txt") for name in names)
    inventory = read_loads(read_inventory(partitions, nodes, config="", groups=()), loads)
    return read_view(inventory, jobs, reservations, config="MaxJobCount = 10000", now=NOW)


def hours_of(hours: float, **fields: object) -> JobSpec:
    return make_job("main", time_limit_s=round(hours * HOUR_S), **fields)  # type: ignore[arg-type]


def starts(view: View, hours: float, *, exclude: tuple[str, ...] = (), preempted: tuple[str, ...] = ()) -> list[object]:
    steps = plan_starts(view, hours_of(hours, exclude=exclude), preempted=preempted)
    return [(datetime.fromtimestamp(moment).strftime("%d %H:%M:%S"), count) for moment, count in steps]


def test_nodes_are_read_with_what_is_used_and_why_they_are_out(view: View) -> None:
    assert [(node.name, node.state, node.gpus_used, node.is_free) for node in view.nodes] == [
        ("node1", "allocated", 8, False), ("node2", "allocated", 8, False), ("node3", "mixed", 4, False),
        ("node4", "allocated", 8, False), ("node5", "planned", 0, True), ("node6", "planned", 0, True),
        ("node7", "down*", 0, False), ("node8", "drained", 0, False),
    ]  # fmt: skip
    down, drained = view.nodes[6:]
    assert (drained.reason, drained.reason_by, drained.since) == ("fan | broken [2], ask Jo", "root", at("02:04:18"))
    assert (down.reason, down.is_usable) == ("Not responding", False)
    assert (drained.gpus, drained.gpu_type, drained.cpus, drained.partitions) == (8, "h100", 64, ("main", "low"))
    assert view.nodes[0].since is None
    assert len(nodes_of(view, "low")) == 8


def test_partitions_are_read_with_their_limits(view: View) -> None:
    assert [(one.name, one.is_default, one.max_time_s, one.nodes_usable) for one in view.partitions] == [
        ("main", True, 172_800, 6), ("low", False, 14_400, 6),
    ]  # fmt: skip
    text = (
        read_recorded("partitions.txt").replace("State=UP", "State=DRAIN").replace("MaxNodes=UNLIMITED", "MaxNodes=4")
    )
    main, _ = read_main(partitions=text).partitions
    assert (main.is_up, main.takes_jobs, main.max_nodes, main.cpus_per_node) == (False, False, 4, 64)
    assert (main.gpus_per_node, main.gpu_type, main.mem_per_node_mib) == (8, "h100", 512_000)


def test_the_queue_is_in_order_and_tells_what_is_planned(view: View) -> None:
    running = [job for job in view.jobs if job.state is JobState.RUNNING]
    assert [(job.job_id, job.nodes) for job in running] == [
        ("2", ("node3",)), ("3", ("node4",)), ("1", ("node1", "node2")),
    ]  # fmt: skip
    ahead = waiting(view, "main")
    assert [(job.job_id, job.num_tasks, job.num_nodes, job.reason) for job in ahead] == [
        ("4", 1, 6, "Resources"), ("5", 1, 1, "BeginTime"), ("6_[0-3]", 4, 2, "Priority"), ("7", 1, 1, "JobHeldUser"),
    ]  # fmt: skip
    assert ahead[0].start_time == at("05:04:19")
    assert ahead[1].start_time is None  # when it may begin is not when it will
    assert (ahead[0].gpus_per_node, ahead[3].gpus_per_node) == (8, 0)
    assert waiting(view, "low") == []


def test_a_short_run_gets_the_gap_before_a_job_that_is_planned(view: View) -> None:
    assert starts(view, 1)[:2] == [("25 02:17:41", 2), ("25 02:44:19", 3)]
    assert ("25 02:17:41", 2) not in starts(view, 3)
    gap_s = longest_now(view, make_job("main", nodes=2))
    assert gap_s == at("05:04:19") - NOW
    assert longest_now(view, make_job("main", nodes=3)) is None


def test_jobs_that_make_way_free_their_nodes_at_once(view: View) -> None:
    assert starts(view, 1, preempted=("3",))[:2] == [("25 02:17:41", 3), ("25 02:44:19", 4)]


def test_nodes_that_are_out_or_left_out_are_not_counted(view: View) -> None:
    assert max(step[1] for step in starts(view, 1)) == 6  # type: ignore[index]
    assert starts(view, 1, exclude=("node5",))[0] == ("25 02:17:41", 1)
    assert max(step[1] for step in starts(view, 1, exclude=("node5",))) == 5  # type: ignore[index]


def test_a_long_run_waits_until_what_is_reserved_is_free_again(view: View) -> None:
    assert starts(view, 48)[-1] == ("26 16:06:57", 6)


def test_nodes_whose_jobs_are_hidden_or_have_no_end_promise_nothing(view: View) -> None:
    assert starts(replace(view, jobs=(), reservations=()), 1) == [("25 02:17:41", 2)]
    endless = tuple(replace(job, end_time=None) for job in view.jobs if job.state is JobState.RUNNING)
    assert starts(replace(view, jobs=endless, reservations=()), 1) == [("25 02:17:41", 2)]


def test_what_test_only_says_is_read() -> None:
    said = "sbatch: Job 11 to start at 2026-11-25T13:06:19 using 320 processors on nodes node[3-7] in partition main\n"
    assert read_start(said) == at("13:06:19")
    assert read_preempted(said) == ()
    assert read_preempted(said + "sbatch:   Preempts: 3,17\n") == ("3", "17")
    assert read_start("") is None


def test_jobs_that_ended_a_moment_ago_are_counted_and_not_shown(view: View) -> None:
    times = "|".join(f"2026-11-25T02:0{minute}:00" for minute in range(3))
    ended = f"9|COMPLETED|main|root|1|gres:gpu:8|1|{times}|1:00:00|||None"
    more = read_main(squeue=read_recorded("squeue.txt") + ended + "\n")
    assert more.jobs == view.jobs
    assert (more.num_jobs, more.max_jobs) == (view.num_jobs + 1, 10_000)


def test_the_nodes_of_a_reservation_are_for_the_jobs_in_it_as_long_as_it_lasts(view: View) -> None:
    begin = at("08:06:57") + 24 * HOUR_S
    inside = plan_starts(view, hours_of(1, reservation="maint"), preempted=())
    assert [(round(moment - begin), count) for moment, count in inside] == [(0, 2)]
    assert plan_starts(view, hours_of(9, reservation="maint"), preempted=()) == []


def test_only_nodes_that_have_what_a_job_asks_for_are_counted() -> None:
    acct = view_site("acct")
    names = {
        ("gpu", "a100", 4): 2, ("gpu", "a100", 8): 0, ("gpu", "h100", 8): 4, ("gpu", None, 4): 6, ("all", None, 0): 8,
        ("cpuq", None, 1): 0, ("h100,a100", "a100", 4): 2,
    }  # fmt: skip
    for (partition, kind, count), expected in names.items():
        found = fitting_nodes(acct, make_job(partition, gpus_per_node=count, gpu_type=kind))
        assert len(found) == expected, (partition, kind, count)
    assert len(fitting_nodes(acct, make_job("all", cpus_per_task=64))) == 4
    assert len(fitting_nodes(acct, make_job("all", mem_per_node="300G"))) == 4
    assert len(fitting_nodes(acct, make_job("all", exclude=("cpu1", "gpu-b01")))) == 6
    assert [node.name for node in fitting_nodes(view_site("mig"), make_job("everything", constraint="ib"))] == [
        "plain1", "plain2", "plain3",
    ]  # fmt: skip


def test_a_job_runs_in_one_of_several_partitions_and_starts_where_it_can_first() -> None:
    acct = view_site("acct")
    steps = plan_starts(acct, make_job("h100,a100", time_limit_s=60), preempted=())
    assert steps == [(acct.time, 4)]  # not six: its nodes lie in one of them


def test_nodes_that_are_out_are_told_from_nodes_that_never_come() -> None:
    """What sbatch then said to the same jobs: it took the first ones, and refused the others."""
    acct = change_nodes(view_site("acct"), {"gpu-b01": "drained", "gpu-b02": "down"})
    a100 = {"gpus_per_node": 4, "gpu_type": "a100"}
    assert could_ever_start(acct, make_job("a100", nodes=2))
    assert could_ever_start(acct, make_job("gpu", nodes=2, **a100))
    assert not could_ever_start(acct, make_job("gpu", nodes=3, **a100))
    assert not could_ever_start(acct, make_job("gpu", gpus_per_node=8, gpu_type="a100"))
    assert not could_ever_start(acct, make_job("a100", cpus_per_task=40))
    assert not could_ever_start(acct, make_job("a100", nodes=2, exclude=("gpu-b02",)))
    assert not could_ever_start(
        view_site("acct"), make_job("a100", nodes=2)
    )  # all are there: it must be something else
    assert could_ever_start(view_site("private"), make_job("work")) is None


def test_nodes_that_are_reserved_before_a_job_would_end_are_out_of_its_reach(view: View) -> None:
    until_s = at("08:06:57") + 24 * HOUR_S - NOW
    assert could_ever_start(view, make_job("main", nodes=6, time_limit_s=round(until_s) + 60))
    assert not could_ever_start(view, make_job("main", nodes=6, time_limit_s=round(until_s) - 60))
