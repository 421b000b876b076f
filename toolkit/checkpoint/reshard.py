"""State of a DeepSpeed engine <-> slices of tensors under layout-free names, for every ZeRO stage.

Nothing is sent between ranks to save: each replica holds a part of the fp32 weights and moments, and gives that. To
load, each reads what it is to hold; only the working copy of ZeRO 1 and 2 then goes from rank to rank.

Source: deepspeed 0.19.8, utils/tensor_fragment.py (`_hp_mapping`), runtime/zero/stage_1_and_2.py and
runtime/bf16_optimizer.py (`update_lp_params`; the inner optimizer has one flat partition a group),
runtime/zero/stage3.py (`fp32_partitioned_groups_flat`; `ds_tensor` is this rank's piece of the flattened, padded
parameter). The names that are not public are guarded by tests/spawn/test_checkpoints.py, and the version is pinned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from toolkit.checkpoint.layout import KINDS, Slice

Weights: TypeAlias = Sequence[tuple[str, nn.Parameter]]
Lookup: TypeAlias = Callable[[str, str, int, int], Tensor]
"""(kind, name, start, stop) -> these elements of the flattened fp32 tensor."""

_MOMENTS = KINDS[1:]


@dataclass(frozen=True, slots=True)
class Held:
    """A slice as the engine holds it: flat fp32 views by kind, which change with the next step."""

    slice: Slice
    tensors: Mapping[str, Tensor]


def list_held(engine: Any, weights: Weights, *, replica: int, replicas: int) -> list[Held]:
    """List what this rank is to save; the replicas of all stages together hold every element once.

    Args:
        engine: the DeepSpeed engine.
        weights: this rank's parameters under layout-free names, the same order on all replicas of a stage.
        replica: this rank's data-parallel index.
        replicas: how many there are.
    """
    # DeepSpeed marks a tied parameter on all stages but its first.
    own = [(name, parameter) for name, parameter in weights if not getattr(parameter, "ds_pipe_replicated", False)]
    if _zero_stage(engine) == 0:
        return _share_plain(engine, own, replica=replica, replicas=replicas)
    find = _find_in_stage_3 if _zero_stage(engine) == 3 else _find_in_partition
    held = (find(engine, name, parameter) for name, parameter in own)
    return [one for one in held if one is not None]


def count_updates(engine: Any) -> int:
    """Tell how many steps the optimizer has applied; 0 before the first."""
    steps = [int(state["step"]) for state in _inner(engine).state.values() if "step" in state]
    return max(steps, default=0)


def write_state(engine: Any, weights: Weights, lookup: Lookup, *, updates: int) -> None:
    """Set weights, moments and the optimizer's step from what was stored; all ranks together.

    Args:
        engine: the DeepSpeed engine, freshly built or not.
        weights: this rank's parameters under layout-free names.
        lookup: gives the stored elements.
        updates: steps that the optimizer has applied.
    """
    if _zero_stage(engine) == 0:
        _write_plain(engine, weights, lookup, updates=updates)
        return
    _make_moments(engine, updates=updates)
    if _zero_stage(engine) == 3:
        for name, parameter in weights:
            _write_stage_3(name, parameter, lookup)
        return
    for name, parameter in weights:
        held = _find_in_partition(engine, name, parameter)
        if held is not None:
            for kind, tensor in held.tensors.items():
                tensor.copy_(lookup(kind, name, held.slice.start, held.slice.stop))
    engine.optimizer.update_lp_params()


def _zero_stage(engine: Any) -> int:
    return int(engine.zero_optimization_stage())


def _inner(engine: Any) -> Any:
    return engine.optimizer if _zero_stage(engine) == 0 else engine.optimizer.optimizer


def _share_plain(engine: Any, weights: Weights, *, replica: int, replicas: int) -> list[Held]:
    """Cut what every replica holds into even shares: this one's range of all parameters end to end."""
    total = sum(parameter.numel() for _, parameter in weights)
    first, last = total * replica // replicas, total * (replica + 1) // replicas
    held, offset = [], 0
    for name, parameter in weights:
        start, stop = max(first - offset, 0), min(last - offset, parameter.numel())
        offset += parameter.numel()
        if start < stop:
            state = _inner(engine).state.get(parameter, {})
            flat = parameter.detach().view(-1)[start:stop]
            moments = {key: _moment(state, key, parameter).view(-1)[start:stop] for key in _MOMENTS}
            held.append(Held(_slice(name, parameter.shape, start, stop), {"weight": flat, **moments}))
    return held


def _find_in_partition(engine: Any, name: str, parameter: Any) -> Held | None:
    """Find a parameter's range in the flat partitions of ZeRO 1, 2 and bf16; None: other replicas hold it."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    partition = _inner(engine).param_groups[mapping.param_group_index]["params"][0]
    place, found = mapping.lp_fragment_address, mapping.hp_fragment_address
    state = _inner(engine).state.get(partition, {})
    flat = {"weight": partition.detach(), **{key: _moment(state, key, partition) for key in _MOMENTS}}
    tensors = {kind: tensor.narrow(0, found.start, found.numel) for kind, tensor in flat.items()}
    return Held(_slice(name, parameter.shape, place.start, place.start + place.numel), tensors)


def _find_in_stage_3(engine: Any, name: str, parameter: Any) -> Held | None:
    start, stop = _stage_3_range(parameter)
    if start == stop:  # a parameter with fewer elements than replicas: padding is all that is here
        return None
    weight = safe_get_local_fp32_param(parameter).detach()
    if _inner(engine).state:
        moments = [safe_get_local_optimizer_state(parameter, key) for key in _MOMENTS]
    else:
        moments = [torch.zeros_like(weight) for _ in _MOMENTS]
    cut = {kind: tensor[: stop - start] for kind, tensor in zip(KINDS, (weight, *moments), strict=True)}
    return Held(_slice(name, parameter.ds_shape, start, stop), cut)


def _write_stage_3(name: str, parameter: Any, lookup: Lookup) -> None:
    start, stop = _stage_3_range(parameter)
    piece = parameter.ds_tensor
    for kind in KINDS:
        value = torch.zeros(piece.numel(), dtype=torch.float32, device=piece.device)
        value[: stop - start].copy_(lookup(kind, name, start, stop))
        if kind == "weight":
            safe_set_local_fp32_param(parameter, value)
            piece.data.copy_(value)
        else:
            safe_set_local_optimizer_state(parameter, value, kind)
    if parameter.data.numel() == parameter.ds_numel:  # small ones stay gathered
        parameter.data.copy_(lookup("weight", name, 0, parameter.ds_numel).view(parameter.ds_shape))


def _stage_3_range(parameter: Any) -> tuple[int, int]:
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    width = parameter.ds_tensor.ds_numel
    return min(rank * width, parameter.ds_numel), min((rank + 1) * width, parameter.ds_numel)


def _write_plain(engine: Any, weights: Weights, lookup: Lookup, *, updates: int) -> None:
    for name, parameter in weights:
        stored = {kind: lookup(kind, name, 0, parameter.numel()).view(parameter.shape) for kind in KINDS}
        parameter.data.copy_(stored["weight"])
        moments = {key: stored[key].to(parameter.device, copy=True) for key in _MOMENTS}
        engine.optimizer.state[parameter] = {"step": torch.tensor(float(updates)), **moments}


def _make_moments(engine: Any, *, updates: int) -> None:
    """Create Adam's state where there is none yet: setting a value copies into it."""
    inner = _inner(engine)
    if _zero_stage(engine) == 3:
        partitions = engine.optimizer.fp32_partitioned_groups_flat
    else:
        partitions = [partition for group in inner.param_groups for partition in group["params"]]
    for partition in partitions:
        state = inner.state[partition]
        for key in _MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(partition)
        state["step"] = torch.tensor(float(updates))


def _moment(state: Mapping[str, Tensor], key: str, like: Tensor) -> Tensor:
    """Give a moment; before the first applied step there is none, which is the same as zeros."""
    return state[key] if key in state else torch.zeros_like(like)


def _slice(name: str, shape: Sequence[int], start: int, stop: int) -> Slice:
    return Slice(name=name, shape=tuple(shape), start=int(start), stop=int(stop))
