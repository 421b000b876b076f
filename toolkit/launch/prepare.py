"""A token dataset made by jobs: an array shares the text among its tasks, a last job puts the parts together.

    JOBS_DIR/   code/ (frozen)   logs/   share.sbatch   merge.sbatch   job.json (the last job)

The dataset itself grows in OUT.partial; what is done there is never done again, so that jobs which broke off are
simply handed in once more, and only the tasks that still have something to do.
"""

import json
import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from toolkit import storage
from toolkit.cluster.base import Cluster, JobStatus
from toolkit.cluster.choose import open_cluster
from toolkit.cluster.environment import fill_from_environment
from toolkit.cluster.marks import follower_mark, owner_of
from toolkit.cluster.partitions import PartitionLimits, find_partition
from toolkit.cluster.spec import ARRAY_TASK, JobSpec, make_spec
from toolkit.config.load import find_profile, load_config
from toolkit.config.schema import ClusterSection, DataSection
from toolkit.data.manifest import NAME as MANIFEST
from toolkit.data.prepare.preparation import PLAN, Preparation, is_finished, make_plan, name_partial
from toolkit.data.prepare.tokenizer import load_tokenizer
from toolkit.data.prepare.tokens import begin, progress
from toolkit.data.text.hub import PREFIX as HUB_PREFIX
from toolkit.launch.snapshot import checkout_dir, freeze_code, name_code
from toolkit.modes import private_files

_FINISH = "finish"
_SCRIPT = "data_prep.tokenize_corpus"  # by -m: a script's folder, not the frozen code, would head its path


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparationJobs:
    """How a dataset would be made; nothing has been written yet."""

    asked: Preparation
    out: str
    jobs_dir: Path
    num_tasks: int
    share: JobSpec
    """An array over the tasks."""
    merge: JobSpec


def ask_for(data: DataSection) -> tuple[Preparation, str]:
    """Say what a run's data.source is to become, and where."""
    assert data.source, "data.source is empty"
    assert data.tokenizer is not None, "data.tokenizer is not set"
    assert data.path is not None, "data.path is not set"
    asked = Preparation(
        inputs=tuple(data.source),
        tokenizer=data.tokenizer,
        eos=data.eos,
        column=data.column,
        validation=data.validation,
    )
    return asked, data.path


def name_dataset(data: DataSection) -> str:
    """Choose a place for the dataset of a source that has none: the same for the same source and options."""
    words = json.dumps([data.source, data.tokenizer, data.column, data.validation, *filter(None, [data.eos])])
    stem = Path(data.source[0].rstrip("/").rpartition(":")[2]).name.split(".")[0]
    return f"data/{stem}-{xxhash.xxh3_64_hexdigest(words.encode())[:8]}"


def plan_jobs(
    asked: Preparation,
    *,
    out: str,
    root: Path,
    num_tasks: int,
    section: ClusterSection,
    partition: PartitionLimits,
) -> PreparationJobs:
    """Lay out the jobs, one task a node with all its CPUs.

    Args:
        asked: what to make.
        out: directory or URL of the dataset.
        root: directory of runs, which all nodes see.
        num_tasks: most tasks of the array; the dataset does not depend on it, so a cluster may set a lower limit.
        section: account, environment and the like.
        partition: where they run.
    """
    name, num_tasks = Path(out.rstrip("/")).name, choose_num_tasks(num_tasks, partition)
    jobs_dir = root.absolute() / ".prepare" / f"{name}-{xxhash.xxh3_64_hexdigest(out.encode())[:8]}"
    part = ("--task", ARRAY_TASK, "--num-tasks", str(num_tasks))
    share = make_spec(
        section,
        name=f"prepare-{name}",
        command=(sys.executable, "-m", _SCRIPT, "--out", out, *part),
        work_dir=name_code(jobs_dir / "code"),
        log_dir=jobs_dir / "logs",
        nodes=1,
        tasks_per_node=1,
    )
    limit_s = section.time_limit or partition.max_time_s
    share = replace(share, cpus_per_task=partition.cpus_per_node, time_limit_s=limit_s, array=tuple(range(num_tasks)))
    command = (sys.executable, "-m", _SCRIPT, "--out", out)
    merge = replace(share, name=f"finish-{name}", command=command, cpus_per_task=1, array=(), dependency="afterok:JOB")
    return PreparationJobs(asked=asked, out=out, jobs_dir=jobs_dir, num_tasks=num_tasks, share=share, merge=merge)


def choose_num_tasks(wanted: int, partition: PartitionLimits) -> int:
    """Choose the tasks of the array: not more than one may have here."""
    return min(wanted, partition.max_array_tasks or wanted)


def hand_in(asked: Preparation, *, out: str, num_tasks: int) -> dict[str, Any]:
    """Make a dataset by jobs of this machine's cluster, as the site profile says; emulated where there is none.

    Returns:
        What was handed in.
    """
    profile = find_profile(os.environ, home=Path.home(), profiles_dir=checkout_dir() / "configs" / "clusters")
    cfg = load_config(None, profile=profile).config
    root = Path(cfg.run.root).absolute()
    cluster = open_cluster(cfg.cluster.scheduler, state_dir=root / ".cluster")
    section = fill_from_environment(cfg.cluster, os.environ) if cluster.name == "slurm" else cfg.cluster
    partition = find_partition(cluster.limits(), section.partition)
    jobs = plan_jobs(
        replace(asked, inputs=tuple(map(storage.make_absolute, asked.inputs))),
        out=storage.make_absolute(out),
        root=root,
        num_tasks=num_tasks,
        section=section if partition.is_default else replace(section, partition=partition.name),
        partition=partition,
    )
    job_id = submit_jobs(jobs, cluster)
    return {"dataset": jobs.out, "last_job": job_id or "none: it stands", "scripts_and_logs": str(jobs.jobs_dir)}


def stands(out: str) -> bool:
    """Whether a complete dataset is there."""
    return storage.exists(storage.join(out, MANIFEST))


def refuse_another(asked: Preparation, out: str) -> None:
    """Raise when the dataset that stands was made from something else; one whose text has gone is taken as it is.

    Raises:
        DataError: with what differs.
    """
    if all(name.startswith(HUB_PREFIX) or storage.exists(name) for name in asked.inputs):
        is_finished(make_plan(asked, tokenizer=load_tokenizer(asked.tokenizer)), out)


def read_share(out: str) -> float | None:
    """Tell which part of the text is done; None: the dataset is not being made."""
    partial_dir = name_partial(out)
    if not storage.exists(storage.join(partial_dir, PLAN)):
        return None
    state = progress(partial_dir)
    return state.num_bytes_done / max(1, state.num_bytes)


def find_preparation(jobs_dir: Path, jobs: Sequence[JobStatus]) -> list[JobStatus]:
    """Find the jobs that make a dataset now, by their mark: a number may be another job's by now."""
    found = [job for job in jobs if owner_of(job.mark) == _owner(jobs_dir) and job.state.is_live]
    return sorted(found, key=lambda job: int(job.job_id))


def _owner(jobs_dir: Path) -> str:
    return xxhash.xxh3_64_hexdigest(str(jobs_dir).encode())


def submit_jobs(jobs: PreparationJobs, cluster: Cluster) -> str | None:
    """Hand in the tasks that have something to do, and the job that finishes; join jobs that are at it already.

    Returns:
        The last job's id; None: the dataset is finished.
    """
    finish, owner = f"{_FINISH}-{uuid.uuid4().hex[:12]}", _owner(jobs.jobs_dir)
    at_it = find_preparation(jobs.jobs_dir, cluster.own_jobs())
    last = next((job.job_id for job in at_it if f":{_FINISH}-" in job.mark), None)
    if last is not None:
        return last
    share_id = next((job.job_id for job in at_it), None)
    partial_dir = begin(jobs.asked, jobs.out)
    if partial_dir is None:
        return None
    with private_files():  # the jobs themselves keep the umask of the shell: it is that of the dataset
        work_dir = freeze_code(jobs.jobs_dir / "code")
        (jobs.jobs_dir / "logs").mkdir(exist_ok=True)
    todo = _open_tasks(partial_dir, num_tasks=jobs.num_tasks)
    if todo and share_id is None:
        mark = follower_mark(owner, finish.replace(_FINISH, "share"))
        share = replace(jobs.share, array=todo, work_dir=work_dir, mark=mark)
        share_id = cluster.submit(share, script_path=jobs.jobs_dir / "share.sbatch")
    dependency = f"afterok:{share_id}" if share_id else None
    merge = replace(jobs.merge, dependency=dependency, work_dir=work_dir, mark=follower_mark(owner, finish))
    job_id = cluster.submit(merge, script_path=jobs.jobs_dir / "merge.sbatch")
    job = {"scheduler": cluster.name, "job_id": job_id, "state_dir": str(jobs.jobs_dir.parents[1] / ".cluster")}
    with private_files():
        storage.write_atomic(str(jobs.jobs_dir / "job.json"), (json.dumps(job) + "\n").encode())
    return job_id


def _open_tasks(partial_dir: str, *, num_tasks: int) -> tuple[int, ...]:
    states = [progress(partial_dir, task=task, num_tasks=num_tasks) for task in range(num_tasks)]
    return tuple(task for task, state in enumerate(states) if state.num_spans_done < state.num_spans)
