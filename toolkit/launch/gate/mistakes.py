"""Mistakes of the configuration that need a look around: what no partition gives, what is not the same run."""

from pathlib import Path
from typing import Any

from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.cluster.partitions import PartitionLimits, slice_of
from toolkit.config.schema import RunConfig, to_dict
from toolkit.data.mixture import identify, open_members
from toolkit.errors import Problem, RunError, StorageError
from toolkit.launch.survey import check_limits
from toolkit.rundir import RunDir


def check_partition(cfg: RunConfig, partition: PartitionLimits) -> list[Problem]:
    """Compare what is asked for with what the partition gives."""
    asked = cfg.cluster
    problems = []
    if asked.nodes > partition.num_nodes:
        must = f"partition {partition.name} has {_count_nodes(cfg, partition)}"
        remedy = "use fewer nodes or another --partition" if partition.num_nodes else "use another --partition"
        problems.append(Problem(f"--nodes {asked.nodes}", must, remedy))
    if partition.gpus_per_node and slice_of(partition.gpu_type or "") and (asked.gpus_per_node or 0) > 1:
        what = f"--gpus-per-node {asked.gpus_per_node}: nodes of {partition.name} have slices ({partition.gpu_type})"
        must = "slices of one GPU cannot talk to each other: a run has one rank a node there"
        return [*problems, Problem(what, must, "use --gpus-per-node 1, or a partition with whole GPUs")]
    if partition.gpus_per_node and (asked.gpus_per_node or 0) > partition.gpus_per_node:
        must = f"nodes of partition {partition.name} have {partition.gpus_per_node} {partition.gpu_type or 'GPUs'}"
        problems.append(Problem(f"--gpus-per-node {asked.gpus_per_node}", must, "ask for fewer"))
    if partition.max_time_s and asked.time_limit and asked.time_limit > partition.max_time_s:
        must = f"partition {partition.name} allows {partition.max_time_s / 3600:g} h"
        what = f"--time {asked.time_limit / 3600:g} h"
        problems.append(Problem(what, must, "ask for less: the run requeues itself until it is done"))
    return problems


def check_root(cfg: RunConfig, partition: PartitionLimits) -> list[Problem]:
    """Look whether a file stands where the directory of all runs is to be; the same on every partition."""
    existing = storage.nearest_existing(Path(cfg.run.root))
    if existing.is_dir():
        return []
    return [Problem(f"run.root={cfg.run.root}: {existing} is no directory", "runs are kept in one", "set run.root")]


def check_health(cfg: RunConfig, partition: PartitionLimits) -> list[Problem]:
    """Look whether limits of the health check are named after probes; the same on every partition."""
    return check_limits(cfg.health.limits)


def _count_nodes(cfg: RunConfig, partition: PartitionLimits) -> str:
    """Say how many nodes of a partition the run can get, and what they are where that is not all of them."""
    section = cfg.cluster
    words = [f"with {partition.gpus_per_node} {partition.gpu_type or 'GPUs'} each"] if partition.gpus_per_node else []
    words += [f"with the features {section.constraint}"] if section.constraint else []
    words += ["that are not excluded"] if section.exclude else []
    count = (
        f"{partition.num_nodes} node{'' if partition.num_nodes == 1 else 's'}" if partition.num_nodes else "no nodes"
    )
    return " ".join([count, *words])


def refuse_foreign_checkpoint(cfg: RunConfig, run_dir: RunDir) -> None:
    """Raise when the run directory has checkpoints of something else under the same name."""
    newest = layout.newest(run_dir.find_checkpoints(cfg.checkpoint.dir))
    if newest is None:
        return
    try:
        index = layout.read_index(newest)
    except OSError as error:
        raise StorageError(
            f"{newest} cannot be read: {error.strerror}\n  the run goes on from there\n  try again later"
        ) from error
    now: dict[str, Any] = {
        "model": to_dict(cfg)["model"],
        "tokens_per_step": cfg.batch.tokens_per_step,
        "seed": cfg.run.seed,
        "dataset": identify(open_members(cfg.data.weights), cfg.data),
    }
    differing = [key for key, value in now.items() if getattr(index, key) != value]
    if differing:
        lines = [f"{key}: {getattr(index, key)} then, {now[key]} now" for key in differing]
        raise RunError(
            f"run {run_dir.name} has checkpoints of another {' and another '.join(differing)} (step {index.step})\n  "
            + "\n  ".join(lines)
            + "\n  a run goes on with the same model, data, batch and seed\n  choose another --name"
        )
