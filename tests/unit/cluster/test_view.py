"""What Slurm's commands said of a cluster of eight nodes, and when a run would start on it.

Recorded on Slurm 22.05 (blanks before the columns' ends left out). Jobs that were then handed in started, or were
planned by Slurm's backfill, at the times that these tests expect.
"""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from toolkit.cluster.base import JobState, View
from toolkit.cluster.view import (
    longest_now,
    nodes_of,
    plan_starts,
    read_preempted,
    read_start,
    read_view,
    shorten_nodes,
    waiting,
)

RECORDED = Path(__file__).parent / "recorded"
HOUR_S = 3600.0


def at(clock: str) -> float:
    return datetime.fromisoformat(f"2026-11-25T{clock}").timestamp()


NOW = at("02:17:41")


@pytest.fixture
def view() -> View:
    texts = [(RECORDED / f"{name}.txt").read_text(encoding="utf-8") for name in ("sinfo", "squeue", "reservations")]
    return read_view(*texts, now=NOW)


def starts(view: View, hours: float, *, exclude: tuple[str, ...] = (), preempted: tuple[str, ...] = ()) -> list[object]:
    steps = plan_starts(view, partition="main", time_s=hours * HOUR_S, exclude=exclude, preempted=preempted)
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
    text = (RECORDED / "sinfo.txt").read_text(encoding="utf-8")
    text = text.replace("|up|1-infinite|", "|drain|1-4|") + "empty||n/a|(null)||0/0/0/0|0|1:00:00|n/a|up|1-infinite|||"
    main, _ = read_view(text, "", "No reservations in the system", now=NOW).partitions
    assert (main.is_up, main.max_nodes, main.cpus_per_node, main.gpu_type) == (False, 4, 64, "h100")


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
    gap_s = longest_now(view, partition="main", nodes=2, exclude=())
    assert gap_s == at("05:04:19") - NOW
    assert longest_now(view, partition="main", nodes=3, exclude=()) is None


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


def test_names_are_written_in_the_short_form() -> None:
    assert shorten_nodes(["node1", "node2", "node5", "head"]) == "head,node[1-2,5]"
    assert shorten_nodes(["gpu08", "gpu09", "gpu10", "rack2-n7"]) == "gpu[08-10],rack2-n7"
    assert shorten_nodes([]) == ""
