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

_SWITCHES: Mapping[str, tuple[str, ...]] = {
    "zero_optimization": (
        *("contiguous_gradients", "reduce_scatter", "use_multi_rank_bucket_allreduce", "allgather_partitions"),
        *("overlap_comm", "compute_grad_norm", "load_from_fp32_weights", "elastic_checkpoint", "cpu_offload_param"),
        *("cpu_offload_use_pin_memory", "cpu_offload", "stage3_gather_16bit_weights_on_model_save"),
        *("gather_16bit_weights_on_model_save", "stage3_use_all_reduce_for_fetch_params", "allgather_sequential"),
        *("use_all_reduce_for_fetch_params", "stage3_allgather_sequential", "legacy_stage1", "round_robin_gradients"),
        *("stage3_gather_fp16_weights_on_model_save", "ignore_unused_parameters", "parameter_alignment"),
        *("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"),
        *("memory_efficient_linear", "pipeline_loading_checkpoint", "override_module_apply"),
        *("log_trace_cache_warnings", "enable_sanity_checks", "save_muon_momentum_buffer_in_memory"),
    ),
    "bf16": (
        *("enabled", "immediate_grad_update", "check_grad_overflow", "bf16_master_weights_and_grads"),
        "bf16_optimizer_states",
    ),
}
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "zero_optimization": (
        *("stage", "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "zero_hpz_partition_size"),
        *("prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold", "max_live_parameters"),
        *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold"),
        *("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_module_granularity_threshold"),
        *("max_reuse_distance", "module_granularity_threshold"),
    ),
    "bf16": (),
}
_INNER: Mapping[str, tuple[str, ...]] = {
    "zero_optimization": ("offload_param", "offload_optimizer", "zenflow", "leaf_module"),
    "bf16": (),
}
"""What DeepSpeed knows in the sections in which it refuses any other word: true or false, numbers, sections.

Source: deepspeed 0.19.8, runtime/zero/config.py, runtime/precision_config.py.
"""

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


FLAGS: Mapping[str, str] = {
    **{name: "set cluster.nodes and cluster.gpus_per_node" for name in ("nodes", "ntasks", "ntasks-per-node")},
    **{name: "leave it out" for name in ("chdir", "array", "wrap", "test-only", "wait", "uid", "gid")},
    **{name: "leave it out" for name in ("output", "open-mode", "dependency")},
    "partition": "set cluster.partition",
    "account": "set cluster.account",
    "qos": "set cluster.qos",
    "reservation": "set cluster.reservation",
    "constraint": "set cluster.constraint",
    "exclude": "set cluster.exclude",
    "time": "set cluster.time_limit",
}
"""Flags of sbatch that the plan, the checks or the job's script rely on, and what to do instead."""


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


def find_misfits(extra: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the words that DeepSpeed would refuse where it takes no others, each with what must hold."""
    for section, switches in _SWITCHES.items():
        words, numbers = extra.get(section), _NUMBERS[section]
        for name, value in words.items() if isinstance(words, Mapping) else ():
            if name not in {*switches, *numbers, *_INNER[section]}:
                yield f"{section}.{name}", "DeepSpeed knows no such key, and refuses what it does not know"
            elif name in switches and not isinstance(value, bool):
                yield f"{section}.{name}", "DeepSpeed takes true or false there"
            elif name in numbers and (isinstance(value, bool) or not isinstance(value, int | float) or value % 1):
                yield f"{section}.{name}", "DeepSpeed takes a whole number there"


def owner_of(variable: str) -> tuple[str, str] | None:
    """Say whose a variable is and what to do instead of setting it; None: nobody's."""
    for names, whose, remedy in _VARIABLES:
        if re.fullmatch(names, variable):
            return whose, remedy
    return None
