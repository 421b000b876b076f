"""Jobs that make a dataset, as they would be handed in."""

from dataclasses import replace
from pathlib import Path

from tests.gate import GPUS
from toolkit.config.schema import ClusterSection
from toolkit.data.prepare.preparation import Preparation
from toolkit.launch.prepare import plan_jobs


def test_an_array_has_no_more_tasks_than_the_cluster_allows(tmp_path: Path) -> None:
    asked = Preparation(inputs=("text.jsonl",), tokenizer="t.json", column="text", validation=0.0)
    section = ClusterSection(exclude=["n[1-2]"], requeue=False, reservation="course")
    partition = replace(GPUS, max_array_tasks=4)
    jobs = plan_jobs(asked, out="made", root=tmp_path, num_tasks=16, section=section, partition=partition)
    assert (jobs.num_tasks, jobs.share.array, jobs.share.command[-1]) == (4, (0, 1, 2, 3), "4")
    assert (jobs.share.exclude, jobs.share.requeue, jobs.share.reservation) == (("n1", "n2"), False, "course")
    jobs = plan_jobs(asked, out="made", root=tmp_path, num_tasks=2, section=section, partition=partition)
    assert jobs.num_tasks == 2
