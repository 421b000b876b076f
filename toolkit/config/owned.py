"""What the toolkit and others set themselves, and a configuration must not set another way."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_DEEPSPEED: Mapping[str, str] = {
    "train_batch_size": "set batch.tokens_per_step",
    "train_micro_batch_size_per_gpu": "set batch.micro_batch",
    "gradient_accumulation_steps": "set batch.tokens_per_step and batch.micro_batch: it follows from them",
    "elasticity": "set cluster.nodes: the batch stays when they change",
    "gradient_clipping": "set optim.clip_norm",
    "optimizer": "set the keys of optim",
    "scheduler": "set optim.peak_lr, optim.min_lr_ratio and optim.warmup_tokens",
    "zero_allow_untested_optimizer": "leave it out",
    "zero_force_ds_cpu_optimizer": "leave it out",
    "zero_optimization.stage": "set parallel.zero_stage",
    "bf16.enabled": "set parallel.precision",
    "fp16": "set parallel.precision",
    "amp": "set parallel.precision",
    "torch_autocast": "set parallel.precision",
    "pipeline": "set parallel.stages and parallel.split_by",
    "tensor_parallel": "set parallel.stages: a layout is stages x replicas",
}
"""Keys of DeepSpeed that `train/engine.py` derives, and what to do instead."""

_SECTIONS = (
    *("zero_optimization", "zero_optimization.offload_optimizer", "zero_optimization.offload_param", "bf16"),
    *("data_types", "activation_checkpointing", "aio", "comms_logger", "flops_profiler", "tensorboard", "wandb"),
    *("csv_monitor", "comet", "autotuning", "compression_training", "data_efficiency", "curriculum_learning"),
    *("checkpoint", "eigenvalue", "progressive_layer_drop", "hybrid_engine", "compile", "timers"),
    *("weight_quantization", "expert_parallel", "datastates_ckpt", "sparse_attention"),
)
"""Keys of DeepSpeed that hold keys. Source: deepspeed 0.19.8, runtime/config.py."""

_VARIABLES: tuple[tuple[str, str, str], ...] = (
    (
        r"SLURM.*|SBATCH_.*|SRUN_.*|SALLOC_.*|PMI.*",
        "Slurm tells each rank by it who it is",
        "flags go to cluster.sbatch_extra and cluster.srun_extra",
    ),
    (
        r"MASTER_ADDR|MASTER_PORT|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|NODE_RANK|TOOLKIT_.*",
        "each attempt of a job sets its own",
        "leave it out; an address that only the node knows is exported in a line of cluster.setup",
    ),
    (
        r"BASH.*|ENV|SHELLOPTS|IFS|PS4|PROMPT_COMMAND|CDPATH|GLOBIGNORE|POSIXLY_CORRECT|UID|EUID|PPID",
        "bash acts on it when it reads the job's script",
        "leave it out; what a shell must do goes to cluster.setup",
    ),
)
"""Variables that ranks must not get from a configuration: names, whose they are, what to do."""


def find_owned(extra: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the keys of a DeepSpeed configuration that the toolkit sets, each with what to do instead."""
    for key, remedy in _DEEPSPEED.items():
        section, _, name = key.partition(".")
        inside = extra.get(section)
        if section in extra if not name else isinstance(inside, Mapping) and name in inside:
            yield key, remedy


def find_shapeless(extra: Mapping[str, Any]) -> Iterator[str]:
    """Give the sections of a DeepSpeed configuration that are none."""
    for key in _SECTIONS:
        section, _, name = key.partition(".")
        holder: Any = extra if not name else extra.get(section)
        if isinstance(holder, Mapping) and not isinstance(holder.get(name or section, {}), Mapping):
            yield key


def owner_of(variable: str) -> tuple[str, str] | None:
    """Say whose a variable is and what to do instead of setting it; None: nobody's."""
    for names, whose, remedy in _VARIABLES:
        if re.fullmatch(names, variable):
            return whose, remedy
    return None
