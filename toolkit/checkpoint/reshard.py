"""State of a DeepSpeed engine <-> full tensors under layout-free names, for every ZeRO stage.

Both directions are collective: all replicas of a stage go through the same parameters in the same order.

Source: deepspeed 0.19.8, utils/tensor_fragment.py and runtime/zero/; the attributes that are not public
(`_lazy_init_hp_params_optimizer_state`, `fp32_partitioned_groups_flat`, `ds_tensor`) are guarded by
tests/spawn/test_checkpoints.py, and the version is pinned.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from toolkit.checkpoint.layout import KINDS

Weights: TypeAlias = Sequence[tuple[str, nn.Parameter]]
Lookup: TypeAlias = Callable[[str, str], Tensor]
"""(kind, name) -> the full fp32 tensor."""

_MOMENTS = KINDS[1:]


def read_state(engine: Any, weights: Weights) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Give each parameter's weight and moments as full fp32 tensors, one parameter at a time.

    Args:
        engine: the DeepSpeed engine, after at least one step or `write_state`.
        weights: this rank's parameters under layout-free names.
    """
    _link_moments(engine)
    for name, parameter in weights:
        if _is_plain(engine):
            state = engine.optimizer.state[parameter]
            yield name, {"weight": parameter.detach(), **{key: state[key] for key in _MOMENTS}}
        else:
            moments = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
            yield name, {"weight": safe_get_full_fp32_param(parameter), **moments}


def write_state(engine: Any, weights: Weights, lookup: Lookup, *, step: int) -> None:
    """Set every parameter's weight and moments, and the optimizer's step.

    Args:
        engine: the DeepSpeed engine, freshly built or not.
        weights: this rank's parameters under layout-free names.
        lookup: gives the stored tensors.
        step: optimizer steps that the state has behind it.
    """
    if _is_plain(engine):
        _write_plain(engine, weights, lookup, step=step)
        return
    _make_moments(engine, step=step)
    for name, parameter in weights:
        weight = lookup("weight", name).to(engine.device)
        safe_set_full_fp32_param(parameter, weight)
        for key in _MOMENTS:
            safe_set_full_optimizer_state(parameter, lookup(key, name).to(engine.device), key)
        _set_working_copy(parameter, weight)


def _is_plain(engine: Any) -> bool:
    return bool(engine.zero_optimization_stage() == 0)


def _write_plain(engine: Any, weights: Weights, lookup: Lookup, *, step: int) -> None:
    for name, parameter in weights:
        parameter.data.copy_(lookup("weight", name))
        moments = {key: lookup(key, name).to(parameter.device) for key in _MOMENTS}
        engine.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}


def _make_moments(engine: Any, *, step: int) -> None:
    """Create Adam's state where there is none yet: setting a value copies into it."""
    optimizer = engine.optimizer
    inner = optimizer.optimizer
    if engine.zero_optimization_stage() == 3:
        partitions = optimizer.fp32_partitioned_groups_flat
    else:
        partitions = [partition for group in inner.param_groups for partition in group["params"]]
    for partition in partitions:
        state = inner.state[partition]
        for key in _MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(partition)
        state["step"] = torch.tensor(float(step))
    _link_moments(engine)


def _link_moments(engine: Any) -> None:
    """Tie each parameter to its slices of the flat moments (ZeRO 1, 2 and bf16).

    DeepSpeed does so once, after the step of the first parameter group, when the second has no moments yet.
    """
    if engine.zero_optimization_stage() in {1, 2}:
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _set_working_copy(parameter: Any, weight: Tensor) -> None:
    if not hasattr(parameter, "ds_id"):  # ZeRO 1 and 2: the whole parameter is here
        parameter.data.copy_(weight)
        return
    piece = parameter.ds_tensor  # ZeRO 3: this rank's piece of the flat, padded parameter
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    world_size = torch.distributed.get_world_size(parameter.ds_process_group)
    flat = weight.new_zeros(piece.numel() * world_size)
    flat[: weight.numel()] = weight.flatten()
    piece.data.copy_(flat[rank * piece.numel() : (rank + 1) * piece.numel()])
    if parameter.data.numel() == weight.numel():  # small ones stay gathered
        parameter.data.copy_(weight.view_as(parameter.data))
