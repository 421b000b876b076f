"""The checks before the queue: what a run asks for against the cluster, its data, and the places it writes to."""

import tempfile
from pathlib import Path
from typing import Any

from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.cluster.base import PartitionLimits
from toolkit.config.schema import RunConfig, to_dict
from toolkit.data.manifest import check_sizes
from toolkit.data.mixture import Member, identify, open_members
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import identify_tokenizer, load_tokenizer
from toolkit.data.stream import count_samples
from toolkit.data.text.sources import find_inputs
from toolkit.errors import DataError, Problem, RunError, StorageError
from toolkit.launch.prepare import ask_for, refuse_another, stands
from toolkit.plan.costs import num_parameters
from toolkit.rundir import RunDir

_ANSWER_S = 15.0  # nobody waits for a failover at the prompt


def check_partition(cfg: RunConfig, partition: PartitionLimits) -> list[Problem]:
    """Compare what is asked for with what the partition gives."""
    asked = cfg.cluster
    problems = []
    if asked.nodes > partition.num_nodes:
        must = f"partition {partition.name} has {partition.num_nodes}"
        problems.append(Problem(f"--nodes {asked.nodes}", must, "use fewer nodes or another --partition"))
    if partition.gpus_per_node and (asked.gpus_per_node or 0) > partition.gpus_per_node:
        must = f"nodes of partition {partition.name} have {partition.gpus_per_node}"
        problems.append(Problem(f"--gpus-per-node {asked.gpus_per_node}", must, "ask for fewer"))
    if partition.max_time_s and asked.time_limit and asked.time_limit > partition.max_time_s:
        must = f"partition {partition.name} allows {partition.max_time_s / 3600:g} h"
        what = f"--time {asked.time_limit / 3600:g} h"
        problems.append(Problem(what, must, "ask for less: the run requeues itself until it is done"))
    return problems


def check_data(cfg: RunConfig) -> list[Problem]:
    """Look whether the datasets are whole, long enough, and within the model's vocabulary, or can be made."""
    if not cfg.data.weights or (cfg.data.source and cfg.data.tokenizer is None):
        return []  # check_config has said it
    try:
        with storage.patience(_ANSWER_S):
            return _check_datasets(cfg)
    except (DataError, StorageError) as error:
        return [Problem.parse(str(error))]


def _check_datasets(cfg: RunConfig) -> list[Problem]:
    if cfg.data.source:
        asked, out = ask_for(cfg.data)
        if not stands(out):
            return _check_source(cfg, asked)
        refuse_another(asked, out)
    members = open_members(cfg.data.weights)
    problems = [problem for member in members for problem in _check_member(cfg, member)]
    return [*problems, *_check_vocabulary(cfg, members[0].manifest.tokenizer.vocab_size)]


def _check_source(cfg: RunConfig, asked: Preparation) -> list[Problem]:
    find_inputs(asked.inputs)
    identity = identify_tokenizer(asked.tokenizer, load_tokenizer(asked.tokenizer))
    return _check_vocabulary(cfg, identity.vocab_size)


def _check_vocabulary(cfg: RunConfig, size: int) -> list[Problem]:
    if size <= cfg.model.vocab_size:
        return []
    what = f"model.vocab_size={cfg.model.vocab_size}, the dataset's tokenizer has {size}"
    return [Problem(what, "every token needs a row of the embedding", "raise model.vocab_size")]


def _check_member(cfg: RunConfig, member: Member) -> list[Problem]:
    shards = [shard for split in member.manifest.splits.values() for shard in split]
    problems = [
        Problem(text, "shards must be as the manifest says", "prepare the dataset again")
        for text in check_sizes(member.dataset_dir, shards)
    ]
    for split in ("train", "validation") if cfg.monitor.eval_every else ("train",):
        num_tokens = member.manifest.num_tokens(split)
        if count_samples(num_tokens, seq_len=cfg.data.seq_len) < 1:
            what = f"the {split} split of {member.dataset_dir} has {num_tokens} tokens"
            problems.append(Problem(what, f"a sample takes data.seq_len={cfg.data.seq_len} + 1", "use more text"))
    return problems


def check_places(cfg: RunConfig) -> list[Problem]:
    """Try to write where the run will, leaving nothing, and compare free space with one checkpoint."""
    root = Path(cfg.run.root) / cfg.run.name
    asked = cfg.checkpoint
    target = Path(asked.dir) if asked.dir and asked.mirror_url is None else root
    problems = []
    for key, place in {"run.root": root, "checkpoint.dir": target}.items():
        existing = storage.nearest_existing(place)
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            what = f"cannot write to {existing}: {error.strerror}"
            problems.append(Problem(what, f"{place} is to be there", f"set {key}, or ask for the right to write"))
    if problems:
        return problems[:1] if target == root else problems
    if asked.mirror_url is not None:
        problems += _check_reachable(asked.mirror_url)
    need, free = layout.bytes_needed(num_parameters(cfg.model)), storage.free_bytes(target)
    if need > free:
        what = f"{target} has {free / 2**30:.1f} GiB free"
        must = f"one checkpoint takes {need / 2**30:.1f} GiB"
        problems.append(Problem(what, must, "free space, or set checkpoint.dir elsewhere"))
    return problems


def _check_reachable(url: str) -> list[Problem]:
    try:
        with storage.patience(_ANSWER_S):
            storage.exists(url)
    except StorageError as error:
        return [Problem.parse(str(error))]
    return []


def refuse_foreign_checkpoint(cfg: RunConfig, run_dir: RunDir) -> None:
    """Raise when the run directory has checkpoints of something else under the same name."""
    newest = layout.newest(run_dir.find_checkpoints(cfg.checkpoint.dir))
    if newest is None:
        return
    index = layout.read_index(newest)
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
