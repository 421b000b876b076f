"""A step whose numbers are not finite never happened: every ZeRO stage, bf16 and the pipeline."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.spawn.ranks import run_ranks
from tests.spawn.tiny import build, make_batch, make_config
from toolkit.config.schema import RunConfig

pytestmark = [pytest.mark.spawn, pytest.mark.timeout(900)]

NUM_GOOD = 6
BAD_BEFORE = {0: 1, 3: 2}  # step -> bad tries before it: nothing of Adam's exists yet at the first one

PLACES = [
    # stages, replicas, zero_stage, precision
    (1, 1, 0, "fp32"), (1, 2, 0, "fp32"),
    (1, 2, 1, "fp32"), (1, 2, 2, "fp32"), (1, 2, 3, "fp32"),
    (1, 2, 1, "bf16"), (1, 2, 2, "bf16"), (1, 2, 3, "bf16"),
    (2, 1, 1, "fp32"), (2, 2, 1, "fp32"), (2, 2, 1, "bf16"),
]  # fmt: skip
KINDS = ["weight's gradient", "gradient", "nan loss", "infinite loss"]


def read(cfg: RunConfig, step: int, replica: int) -> list[Any]:
    from toolkit.train.engine import batch_shape

    tokens, labels = make_batch(cfg, step)
    shape = batch_shape(cfg)
    ranges = [shape.positions(replica=replica, micro_index=number) for number in range(shape.num_micro_batches)]
    return [(tokens[part.start : part.stop], labels[part.start : part.stop]) for part in ranges]


def state_of(engine: Any) -> list[torch.Tensor]:
    """Copy working weights, master weights, moments and their step, as this rank holds them."""
    outer = engine.deepspeed.optimizer
    inner = getattr(outer, "optimizer", outer)
    masters = getattr(outer, "fp32_partitioned_groups_flat", [p for g in inner.param_groups for p in g["params"]])
    weights = [getattr(weight, "ds_tensor", weight) for _, weight in engine.named_weights()]
    moments = [value for state in inner.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*weights, *masters, *moments]]


def is_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(a.equal(b) for a, b in zip(one, other, strict=True))


class Spoilt(torch.autograd.Function):
    """Leaves a tensor as it is, and its gradient not finite."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


@contextmanager
def poison(engine: Any, kind: str, *, is_here: bool, micro_index: int) -> Iterator[None]:
    """Make one micro-batch of this rank give numbers that are not finite."""
    module, passes = engine._module, iter(range(1000))

    def spoil_output(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        if next(passes) != micro_index or not logits.is_floating_point() or logits.shape[-1] != 128:
            return logits
        if kind == "gradient":
            return Spoilt.apply(logits)
        if kind == "nan loss":
            return logits * math.nan
        # A token that cannot be: the loss of its labels is infinite, the gradient is not.
        return logits.masked_fill(torch.arange(128) < 64, -math.inf)

    weight = engine.named_weights()[-1][1]
    if not is_here:
        hook = None
    elif kind == "weight's gradient":
        hook = weight.register_hook(lambda gradient: gradient * math.inf)
    else:
        hook = module.register_forward_hook(spoil_output)
    yield
    if hook is not None:
        hook.remove()


def learn(world: Any, cfg: RunConfig, kind: str | None) -> dict[str, Any]:
    """Train with bad steps in between, or without."""
    engine, replica = build(world, cfg)
    told: dict[str, Any] = {"losses": [], "bad": [], "norms": [], "unchanged": []}
    last_stage = world.rank >= world.size - cfg.replicas
    for step in range(NUM_GOOD):
        batches = read(cfg, step, replica)
        for _ in range(BAD_BEFORE.get(step, 0) if kind else 0):
            before = state_of(engine)
            with poison(engine, kind or "", is_here=last_stage and replica == cfg.replicas - 1, micro_index=1):
                result = engine.train_step(read(cfg, 19, replica), learning_rate=1e-2)
            after = state_of(engine)
            # Moments may be made, as zeros, by a step that is left out.
            told["unchanged"].append(is_equal(before, after))
            told["bad"].append((result.applied, [(one.replica, one.micro_index, one.rank) for one in result.bad]))
        result = engine.train_step(batches, learning_rate=1e-2)
        assert result.applied
        assert result.bad == ()
        assert result.forward_s > 0
        told["losses"].append(result.loss)
        told["norms"].append(result.grad_norm)
    told["state"] = [tensor.float().numpy() for tensor in state_of(engine)]
    return told


def learn_all_ways(world: Any, cfg: RunConfig) -> list[dict[str, Any]]:
    return [learn(world, cfg, kind) for kind in (None, *KINDS)]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_step_that_is_not_finite_never_happened(place: tuple[int, int, int, str]) -> None:
    stages, replicas, zero_stage, precision = place
    cfg = make_config(stages=stages, replicas=replicas, zero_stage=zero_stage, tied=False, precision=precision)
    by_rank = run_ranks(learn_all_ways, world_size=cfg.world_size, args=(cfg,))
    for clean, *others in by_rank:
        for kind, told in zip(KINDS, others, strict=True):
            named = [] if kind == "weight's gradient" else [(replicas - 1, 1, cfg.world_size - 1)]
            assert told["bad"] == [(False, named)] * sum(BAD_BEFORE.values()), kind
            assert all(told["unchanged"]), kind
            assert told["losses"] == clean["losses"], kind
            assert told["norms"] == clean["norms"], kind
            assert all((a == b).all() for a, b in zip(told["state"], clean["state"], strict=True)), kind
    assert by_rank[0][0]["losses"] == by_rank[-1][0]["losses"]
